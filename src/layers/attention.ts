/** Keras' Attention: dot products of the inputs themselves, without projections. */
import * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import {describeValue, SageAttentionError} from '../runtime/errors.js';
import {additiveAttention} from './additive_scores.js';
import {
  AttentionLayer,
  type AttentionInputs,
  type AttentionLayerArgs,
  type AttentionShapes,
  type Shape,
} from './attention_layer.js';

export interface AttentionArgs extends AttentionLayerArgs {
  /** A trained number multiplies the scores. Default `false`. */
  useScale?: boolean | undefined;
  /** `'dot'`: q·k. `'concat'`: the sum of tanh(q + k), times a trained number. Default `'dot'`. */
  scoreMode?: 'dot' | 'concat' | undefined;
  /** Causal in every call, as older Keras had it. Default `false`. */
  causal?: boolean | undefined;
}

/**
 * Dot-product attention, by Luong et al., with Keras' arguments, weights and masks. Scores are not divided by the root
 * of the width.
 *
 * ```js
 * const y = attention({useScale: true}).apply([query, value]);
 * ```
 *
 * Inputs: query [...,T,D], value [...,S,Dv], key [...,S,D]. Output [...,T,Dv]; scores [...,T,S]. Rows that the mask of
 * the query hides are 0.
 */
export class Attention extends AttentionLayer {
  /** @nocollapse */
  static className = 'Attention';
  protected readonly useScale: boolean;
  protected readonly scoreMode: 'dot' | 'concat';
  private readonly causal: boolean;
  protected scale: tfl.LayerVariable | null = null;
  private concatWeight: tfl.LayerVariable | null = null;

  constructor(args: AttentionArgs = {}) {
    super(args);
    this.useScale = args.useScale ?? false;
    this.causal = args.causal ?? false;
    const {scoreMode = 'dot'} = args;
    if (scoreMode !== 'dot' && scoreMode !== 'concat') {
      throw new SageAttentionError({
        code: 'invalid-option',
        argument: 'scoreMode',
        message: `${this.name}: \`scoreMode\` is ${describeValue(scoreMode)}, expected 'dot' or 'concat'.`,
        hint: 'docs/layers.md lists the arguments of every layer.',
      });
    }
    this.scoreMode = scoreMode;
  }

  override whyNotReplaced(): string | null {
    if (this.scoreMode === 'concat') return ADDITIVE;
    return this.remembered.returnAttentionScores === true
      ? 'returns its scores, which sageAttention never holds in memory'
      : null;
  }

  protected override buildFor({query}: AttentionShapes): void {
    if (this.useScale) this.scale = this.scaleFor(query);
    if (this.scoreMode === 'concat') this.concatWeight = this.oneNumber('concat_score_weight');
  }

  /** The trained scale for queries of this shape; Attention's is one number whatever that is. */
  protected scaleFor: (query: Shape) => tfl.LayerVariable = () => this.oneNumber('scale');

  private oneNumber(name: string): tfl.LayerVariable {
    return this.addWeight(name, [], 'float32', tfl.initializers.ones());
  }

  protected override shapesFor({query, value, key}: AttentionShapes): [Shape, Shape] {
    return [
      [...query.slice(0, -1), ...value.slice(-1)],
      [...query.slice(0, -1), ...key.slice(-2, -1)],
    ];
  }

  protected override attend(inputs: AttentionInputs): tf.Tensor | [tf.Tensor, tf.Tensor] {
    const {query, value, key, queryMask, keyMask, returnAttentionScores} = inputs;
    const causal = this.causal || inputs.useCausalMask;
    if (inputs.attentionMask !== null) throw noAttentionMask(this.name);
    const leading = query.shape.slice(0, -2);
    const batch = leading.reduce((a, b) => a * b, 1);
    const flat = (x: tf.Tensor): tf.Tensor3D =>
      tf.reshape(x, [batch, x.shape[x.rank - 2] ?? 1, x.shape[x.rank - 1] ?? 1]);
    const flatMask = (mask: tf.Tensor | null): tf.Tensor | null =>
      mask === null ? null : tf.reshape(mask, [batch, -1]);
    const parts = {
      q: flat(query),
      k: flat(key),
      v: flat(value),
      causal,
      keyMask: flatMask(keyMask),
    };
    const {output, scores} = this.weigh(parts, inputs);
    const rows = flatMask(queryMask);
    const shown = rows === null ? output : tf.where(tf.expandDims(rows, 2), output, 0);
    const result = tf.reshape(shown, [...leading, ...shown.shape.slice(1)]);
    if (scores === null || !returnAttentionScores) return result;
    return [result, tf.reshape(scores, [...leading, ...scores.shape.slice(1)])];
  }

  /** Output [B,T,Dv] and, where they were computed, scores [B,T,S]. */
  protected weigh(
    {q, k, v, causal, keyMask}: AttentionParts,
    inputs: AttentionInputs,
  ): {output: tf.Tensor3D; scores: tf.Tensor3D | null} {
    const scale = this.scale?.read() ?? null;
    if (this.concatWeight !== null) {
      const weight = this.concatWeight.read();
      const inner = scale === null ? (x: tf.Tensor) => x : (x: tf.Tensor) => tf.mul(x, scale);
      return additiveAttention({q, k, v, causal, keyMask}, inputs.dropout, (sum) =>
        tf.mul(weight, tf.sum(tf.tanh(inner(sum)), -1)),
      );
    }
    const oneHead = (x: tf.Tensor3D): tf.Tensor4D => tf.expandDims(x, 2);
    const {output, scores} = this.compute(
      {
        q: oneHead(scale === null ? q : tf.mul<tf.Tensor3D>(q, scale)),
        k: oneHead(k),
        v: oneHead(v),
        scale: 1,
        causal,
        window: null,
        queryMask: null,
        keyMask,
        attentionMask: null,
        emptyRows: 'mean',
      },
      inputs,
    );
    return {
      output: tf.squeeze<tf.Tensor3D>(output, [2]),
      scores: scores === null ? null : tf.squeeze<tf.Tensor3D>(scores, [1]),
    };
  }

  override getConfig(): tf.serialization.ConfigDict {
    return {
      ...super.getConfig(),
      useScale: this.useScale,
      scoreMode: this.scoreMode,
      ...(this.causal ? {causal: true} : {}),
    };
  }
}

/** What `weigh` works on: [B,T,D], [B,S,D], [B,S,Dv], and [B,S]. */
export interface AttentionParts {
  readonly q: tf.Tensor3D;
  readonly k: tf.Tensor3D;
  readonly v: tf.Tensor3D;
  readonly causal: boolean;
  readonly keyMask: tf.Tensor | null;
}

/** Why additive scores are not replaced. */
export const ADDITIVE = 'scores are sums of tanh(q + k), no dot products; computed exactly';

function noAttentionMask(layer: string): SageAttentionError {
  return new SageAttentionError({
    code: 'unsupported-layer',
    argument: 'attentionMask',
    message: `${layer}: this layer takes no \`attentionMask\`.`,
    hint: 'Pass queryMask and valueMask, or useCausalMask.',
  });
}
