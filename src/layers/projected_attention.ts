/**
 * MultiHeadAttention and GroupQueryAttention: inputs projected to heads, attention, heads projected to the output.
 * Weights as Keras names them: `query/kernel` [width, H, D], `query/bias` [H, D], the same for `key` and `value` (with
 * their own heads), `gate` where it is used, `attention_output/kernel` [H, Dv, ...output], `attention_output/bias`.
 */
import * as tf from '@tensorflow/tfjs-core';
import type * as tfl from '@tensorflow/tfjs-layers';
import {SageAttentionError} from '../runtime/errors.js';
import {
  attentionAxes,
  foldAxes,
  foldMask,
  isPlain,
  unfoldAxes,
  unfoldScores,
  type AttentionAxes,
} from './attention_axes.js';
import {
  AttentionLayer,
  type AttentionInputs,
  type AttentionLayerArgs,
  type AttentionShapes,
  type Shape,
} from './attention_layer.js';
import {checkPositiveInteger} from './check_sizes.js';
import {
  configOf,
  kerasObject,
  type Constraint,
  type Identifier,
  type Initializer,
  type Regularizer,
} from './keras_objects.js';

/** Arguments that both layers have. */
export interface ProjectedAttentionArgs extends AttentionLayerArgs {
  /** Projections have a bias. Default `true`. */
  useBias?: boolean | undefined;
  /** A sigmoid of a projection of the query multiplies the heads' outputs. Default `false`. */
  useGate?: boolean | undefined;
  /** Query i sees key j if |i - j| < slidingWindow. Default: all. */
  slidingWindow?: number | null | undefined;
  /** Accepted and kept for Keras; the attention here is always of this kind. */
  flashAttention?: boolean | null | undefined;
  /** Default `'glorotUniform'`. */
  kernelInitializer?: Identifier<Initializer> | undefined;
  /** Default `'zeros'`. */
  biasInitializer?: Identifier<Initializer> | undefined;
  kernelRegularizer?: Identifier<Regularizer> | null | undefined;
  biasRegularizer?: Identifier<Regularizer> | null | undefined;
  /** Kept in the configuration only: tfjs trains no layer with one. */
  activityRegularizer?: Identifier<Regularizer> | null | undefined;
  kernelConstraint?: Identifier<Constraint> | null | undefined;
  biasConstraint?: Identifier<Constraint> | null | undefined;
}

/** Sizes that a subclass takes from its own arguments. */
export interface HeadSizes {
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Shape of the output after the tokens; null = width of the query. */
  readonly outputShape: readonly number[] | null;
  readonly axes: number | readonly number[] | null;
}

interface Projection {
  readonly kernel: tfl.LayerVariable;
  readonly bias: tfl.LayerVariable | null;
}

export abstract class ProjectedAttention extends AttentionLayer {
  protected readonly useBias: boolean;
  protected readonly useGate: boolean;
  protected readonly slidingWindow: number | null;
  private readonly flashAttention: boolean | null;
  private readonly kernelInitializer: Initializer;
  private readonly biasInitializer: Initializer;
  private readonly kernelRegularizer: Regularizer | null;
  private readonly biasRegularizer: Regularizer | null;
  private readonly outputRegularizer: Regularizer | null;
  private readonly kernelConstraint: Constraint | null;
  private readonly biasConstraint: Constraint | null;
  private readonly sizes: HeadSizes;
  private projections: Readonly<Record<string, Projection>> = {};

  constructor(args: ProjectedAttentionArgs, sizes: HeadSizes) {
    super(args);
    this.sizes = sizes;
    this.useBias = args.useBias ?? true;
    this.useGate = args.useGate ?? false;
    this.slidingWindow =
      args.slidingWindow == null
        ? null
        : checkPositiveInteger(this.name, 'slidingWindow', args.slidingWindow);
    this.flashAttention = args.flashAttention ?? null;
    const object = <T extends tf.serialization.Serializable>(
      argument: string,
      identifier: Identifier<T> | null | undefined,
    ): T | null => kerasObject(this.name, argument, identifier);
    const {kernelInitializer = 'glorotUniform', biasInitializer = 'zeros'} = args;
    this.kernelInitializer = object('kernelInitializer', kernelInitializer) as Initializer;
    this.biasInitializer = object('biasInitializer', biasInitializer) as Initializer;
    this.kernelRegularizer = object('kernelRegularizer', args.kernelRegularizer);
    this.biasRegularizer = object('biasRegularizer', args.biasRegularizer);
    this.outputRegularizer = object('activityRegularizer', args.activityRegularizer);
    this.kernelConstraint = object('kernelConstraint', args.kernelConstraint);
    this.biasConstraint = object('biasConstraint', args.biasConstraint);
  }

  override whyNotReplaced(): string | null {
    const {keyDim, valueDim} = this.sizes;
    if (this.remembered.returnAttentionScores === true) {
      return 'returns its scores, which sageAttention never holds in memory';
    }
    return Math.max(keyDim, valueDim) > 512 ? 'heads are wider than 512' : null;
  }

  protected override buildFor({query, value, key}: AttentionShapes): void {
    const {queryHeads, kvHeads, keyDim, valueDim} = this.sizes;
    const width = (shape: Shape, argument: string): number => {
      const last = shape[shape.length - 1];
      if (shape.length >= 3 && last != null) return last;
      throw new SageAttentionError({
        code: 'shape-mismatch',
        argument,
        message: `${this.name}: \`${argument}\` has shape [${shape.join(',')}], expected at least rank 3, [batch, tokens, width], with a known width.`,
        hint: 'Reshape it, or give the width in inputShape.',
      });
    };
    const queryWidth = width(query, 'query');
    this.projections = {
      query: this.projection('query', [queryWidth, queryHeads, keyDim], 1),
      key: this.projection('key', [width(key, 'key'), kvHeads, keyDim], 1),
      ...(this.useGate
        ? {gate: this.projection('gate', [queryWidth, queryHeads, valueDim], 1)}
        : {}),
      value: this.projection('value', [width(value, 'value'), kvHeads, valueDim], 1),
      output: this.projection(
        'attention_output',
        [queryHeads, valueDim, ...(this.sizes.outputShape ?? [queryWidth])],
        2,
      ),
    };
  }

  /** @param bound How many leading axes of the kernel are summed over. */
  private projection(name: string, shape: number[], bound: number): Projection {
    return {
      kernel: this.addWeight(
        `${name}/kernel`,
        shape,
        'float32',
        this.kernelInitializer,
        this.kernelRegularizer ?? undefined,
        true,
        this.kernelConstraint ?? undefined,
      ),
      bias: this.useBias
        ? this.addWeight(
            `${name}/bias`,
            shape.slice(bound),
            'float32',
            this.biasInitializer,
            this.biasRegularizer ?? undefined,
            true,
            this.biasConstraint ?? undefined,
          )
        : null,
    };
  }

  protected override shapesFor({query, key}: AttentionShapes): [Shape, Shape] {
    const {attended, others} = this.axesFor(query.length);
    const at = (shape: Shape, axes: readonly number[]): Shape =>
      axes.map((axis) => shape[axis] ?? null);
    const output = [...query.slice(0, -1), ...(this.sizes.outputShape ?? query.slice(-1))];
    const scores = [
      ...at(query, [0, ...others]),
      this.sizes.queryHeads,
      ...at(query, attended),
      ...at(key, attended),
    ];
    return [output, scores];
  }

  protected override attend(inputs: AttentionInputs): tf.Tensor | [tf.Tensor, tf.Tensor] {
    const {query, value, key, useCausalMask, returnAttentionScores} = inputs;
    const axes = this.axesFor(query.rank);
    if (!isPlain(axes)) this.refusePositions(inputs);
    const q = this.toHeads('query', query);
    const k = this.toHeads('key', key);
    const v = this.toHeads('value', value);
    const {output, scores} = this.compute(
      {
        q: foldAxes(q, axes),
        k: foldAxes(k, axes),
        v: foldAxes(v, axes),
        scale: 1 / Math.sqrt(this.sizes.keyDim),
        causal: useCausalMask,
        window: this.slidingWindow,
        queryMask: inputs.queryMask,
        keyMask: inputs.keyMask,
        attentionMask:
          inputs.attentionMask === null ? null : foldMask(this.name, inputs.attentionMask, axes, q),
        emptyRows: this.emptyRows(axes, returnAttentionScores),
      },
      inputs,
    );
    const heads = unfoldAxes(output, axes, q);
    const gated = this.useGate ? tf.mul(heads, tf.sigmoid(this.toHeads('gate', query))) : heads;
    const result = this.toOutput(gated);
    if (scores === null || !returnAttentionScores) return result;
    return [result, unfoldScores(scores, axes, q, k)];
  }

  /** Keras 3 computes the scores, and zeroes masked ones after the softmax, exactly where its fused form cannot serve. */
  private emptyRows(axes: AttentionAxes, returnScores: boolean): 'mean' | 'zero' {
    const isFused =
      this.dropout === 0 && !returnScores && axes.attended.length + axes.others.length === 1;
    return this.keras === 3 && !isFused ? 'zero' : 'mean';
  }

  /** Keras defines causality, windows and masks of inputs for one axis of tokens only. */
  private refusePositions({queryMask, keyMask, useCausalMask}: AttentionInputs): void {
    const what = useCausalMask
      ? 'useCausalMask'
      : this.slidingWindow !== null
        ? 'slidingWindow'
        : queryMask !== null || keyMask !== null
          ? 'mask'
          : null;
    if (what === null) return;
    throw new SageAttentionError({
      code: 'unsupported-layer',
      argument: what,
      message: `${this.name}: \`${what}\` has a meaning only for inputs [batch, tokens, width], and this layer attends over other axes.`,
      hint: 'Pass an attentionMask.',
    });
  }

  private axesFor(rank: number): AttentionAxes {
    return attentionAxes(this.name, this.sizes.axes, rank);
  }

  /** [..., width] to [..., H, D]. */
  private toHeads(name: string, x: tf.Tensor): tf.Tensor {
    const {kernel, bias} = this.projections[name] as Projection;
    const [width = 1, heads = 1, dim = 1] = kernel.shape as number[];
    return project(x, kernel, bias, 1, width, [heads, dim]);
  }

  /** [..., H, Dv] to [..., ...output]. */
  private toOutput(heads: tf.Tensor): tf.Tensor {
    const {kernel, bias} = this.projections.output as Projection;
    const [count = 1, dim = 1, ...rest] = kernel.shape as number[];
    return project(heads, kernel, bias, 2, count * dim, rest);
  }

  override getConfig(): tf.serialization.ConfigDict {
    const {outputRegularizer: activityRegularizer} = this;
    const config = {
      ...super.getConfig(),
      useBias: this.useBias,
      useGate: this.useGate,
      slidingWindow: this.slidingWindow,
      ...(this.flashAttention === null ? {} : {flashAttention: this.flashAttention}),
      kernelInitializer: configOf(this.kernelInitializer),
      biasInitializer: configOf(this.biasInitializer),
      kernelRegularizer: configOf(this.kernelRegularizer),
      biasRegularizer: configOf(this.biasRegularizer),
      activityRegularizer: configOf(activityRegularizer),
      kernelConstraint: configOf(this.kernelConstraint),
      biasConstraint: configOf(this.biasConstraint),
    };
    return config;
  }
}

/** Sums over the last `bound` axes of x, `width` values in all: one matMul, which every backend has. */
function project(
  x: tf.Tensor,
  kernel: tfl.LayerVariable,
  bias: tfl.LayerVariable | null,
  bound: number,
  width: number,
  output: readonly number[],
): tf.Tensor {
  const tokens = x.shape.slice(0, x.rank - bound);
  const rows = tokens.reduce((a, b) => a * b, 1);
  const columns = output.reduce((a, b) => a * b, 1);
  const matrix = tf.reshape<tf.Rank.R2>(kernel.read(), [width, columns]);
  const product = tf.matMul(tf.reshape<tf.Rank.R2>(x, [rows, width]), matrix);
  const sum = bias === null ? product : tf.add(product, tf.reshape(bias.read(), [columns]));
  return tf.reshape(sum, [...tokens, ...output]);
}
