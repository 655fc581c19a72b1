/** What the attention layers share: naming the tensors of a call, Keras masks, and which way the attention is computed. */
import * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import type {AttentionObserver, RecipeOptions} from '../replace/model_attentions.js';
import {describeValue, SageAttentionError} from '../runtime/errors.js';
import {attendByOps, attendBySage, type AttendCall, type ScoreDropout} from './attend.js';
import {
  checkCallArguments,
  gatherCall,
  placesOf,
  placesToRemember,
  type AttentionCallKwargs,
  type CallArguments,
  type GatheredCall,
  type TensorPlaces,
  type TensorRole,
} from './call_arguments.js';
import {followMasksTo, maskOf, type KerasMajor, type MaskedAttention} from './follow_masks.js';
import {checkRecipeOptions} from './recipe_options.js';

export type LayerArgs = NonNullable<ConstructorParameters<typeof tfl.layers.Layer>[0]>;
export type Shape = tfl.Shape;

/** Arguments of every attention layer, beside those of any tfjs layer (`name`, `trainable`, `inputShape`, ...). */
export interface AttentionLayerArgs extends LayerArgs {
  /** Share of the scores that training drops, 0 to 1. Default 0. */
  dropout?: number | undefined;
  /** Seed of the dropout. Default: another one in each run. */
  seed?: number | null | undefined;
  /** How the attention is computed: precision, smoothing, granularity, accumulator, variant. Default: as configured. */
  sage?: RecipeOptions | undefined;
  /** What `apply` was called with in a saved model. Users pass these to `apply`. */
  callArguments?: CallArguments | undefined;
  /** Whose rules join masks and fill rows that see nothing. Default 3. */
  keras?: KerasMajor | undefined;
}

/** The tensors of one run, named. */
export interface AttentionInputs {
  readonly query: tf.Tensor;
  readonly value: tf.Tensor;
  readonly key: tf.Tensor;
  /** bool. */
  readonly attentionMask: tf.Tensor | null;
  /** bool [B,T]. */
  readonly queryMask: tf.Tensor | null;
  /** bool [B,S]: of key and value, where both have one. */
  readonly keyMask: tf.Tensor | null;
  readonly useCausalMask: boolean;
  readonly returnAttentionScores: boolean;
  /** null outside training. */
  readonly dropout: ScoreDropout | null;
}

/** The shapes of the tensors that a layer is built for. */
export interface AttentionShapes {
  readonly query: Shape;
  readonly value: Shape;
  readonly key: Shape;
}

interface RunKwargs extends AttentionCallKwargs {
  gathered?: GatheredCall;
}

export abstract class AttentionLayer extends tfl.layers.Layer implements MaskedAttention {
  readonly readsMasks = true;
  /** Whose rules join masks and fill rows that see nothing. */
  readonly keras: KerasMajor;
  protected readonly dropout: number;
  protected readonly seed: number | null;
  /** Computes by plain tfjs ops, whatever the options say. */
  plain = false;
  /** Name under which the observer hears of this layer. */
  site: string;
  private observer: AttentionObserver | null = null;
  private recipe: RecipeOptions;
  private callArguments: CallArguments;
  private runs = 0;
  /** Whether the last call returned scores: tfjs asks for a mask of each output. */
  private returnsScores = false;
  /** What the tensors are that the layer is being built for, where that is not what it remembers. */
  private buildingPlaces: TensorPlaces | null = null;

  constructor(args: AttentionLayerArgs = {}) {
    super(args);
    this.supportsMasking = true;
    this.site = this.name;
    this.keras = args.keras === 2 ? 2 : 3;
    this.dropout = checkDropout(this.name, args.dropout);
    this.seed = args.seed ?? null;
    this.recipe = checkRecipeOptions(this.name, args.sage);
    this.callArguments = checkCallArguments(this.name, args.callArguments);
  }

  /** Whether layers that run after this one find no masks on its inputs. */
  takesMasksOff(): boolean {
    return false;
  }

  /** How the attention is computed. */
  get sage(): RecipeOptions {
    return this.recipe;
  }

  set sage(options: RecipeOptions) {
    this.recipe = checkRecipeOptions(this.name, options);
  }

  /** What this layer returns besides its output, and how it was called in the model. */
  get remembered(): CallArguments {
    return this.callArguments;
  }

  /** Sets who is told of every run; null for nobody. */
  observe(observer: AttentionObserver | null): void {
    this.observer = observer;
  }

  /** Why this layer never runs on sageAttention; null when it does. */
  abstract whyNotReplaced(): string | null;

  /** What is worth knowing of a layer that does; null for nothing. */
  replacedNote(): string | null {
    return this.dropout > 0
      ? 'in training, dropout of the scores computes them by plain tfjs ops; prediction does not'
      : null;
  }

  /** Creates the weights. */
  protected abstract buildFor(shapes: AttentionShapes): void;

  protected abstract attend(inputs: AttentionInputs): tf.Tensor | [tf.Tensor, tf.Tensor];

  /** Shapes of the output and of the scores. */
  protected abstract shapesFor(shapes: AttentionShapes): [output: Shape, scores: Shape];

  /**
   * Runs the layer, or adds it to a model.
   *
   * @param inputs query, or `[query, value]`, `[query, value, key]`, `[query, value, key, attentionMask]`. Without
   *   value the layer attends within the query.
   * @param kwargs The rest by name.
   * @returns float32 output, or `[output, scores]` with `returnAttentionScores`.
   */
  override apply(
    inputs: tf.Tensor | tf.Tensor[] | tfl.SymbolicTensor | tfl.SymbolicTensor[],
    kwargs: AttentionCallKwargs = {},
  ): tf.Tensor | tf.Tensor[] | tfl.SymbolicTensor | tfl.SymbolicTensor[] {
    const gathered = gatherCall(this.name, inputs, kwargs, this.callArguments);
    if (!(gathered.tensors[0] instanceof tfl.SymbolicTensor)) {
      const {mask, training} = kwargs;
      const run: RunKwargs = {mask, training, gathered};
      this.buildingPlaces = gathered.places;
      try {
        return super.apply(gathered.tensors as tf.Tensor[], {...run});
      } finally {
        this.buildingPlaces = null;
      }
    }
    this.remember(gathered);
    const symbolic = gathered.tensors as tfl.SymbolicTensor[];
    followMasksTo(symbolic, this.keras);
    // tfjs takes a list of one for a list of shapes.
    return super.apply(symbolic.length === 1 ? (symbolic[0] as tfl.SymbolicTensor) : symbolic);
  }

  override build(inputShape: Shape | Shape[]): void {
    this.buildFor(this.named(shapeList(inputShape)));
    super.build(inputShape);
  }

  override computeOutputShape(inputShape: Shape | Shape[]): Shape | Shape[] {
    const [output, scores] = this.shapesFor(this.named(shapeList(inputShape)));
    return this.callArguments.returnAttentionScores === true ? [output, scores] : output;
  }

  override call(inputs: tf.Tensor | tf.Tensor[], kwargs: RunKwargs = {}): tf.Tensor | tf.Tensor[] {
    return tf.tidy(() => {
      this.invokeCallHook(inputs, kwargs);
      const {mask, training, gathered: known} = kwargs;
      const gathered = known ?? gatherCall(this.name, inputs, {}, this.callArguments);
      const tensors = gathered.tensors as tf.Tensor[];
      const at = (role: TensorRole): tf.Tensor | null => {
        const place = gathered.places[role];
        return place === undefined ? null : (tensors[place] ?? null);
      };
      const maskAt = (role: TensorRole): tf.Tensor | null => {
        const place = gathered.places[role];
        const tensor = place === undefined ? undefined : tensors[place];
        if (place === undefined || tensor === undefined) return null;
        return Array.isArray(mask)
          ? ((mask as (tf.Tensor | null)[])[place] ?? null)
          : maskOf(tensor, this);
      };
      const returnAttentionScores =
        gathered.returnAttentionScores ?? this.callArguments.returnAttentionScores ?? false;
      this.returnsScores = returnAttentionScores;
      const query = at('query') as tf.Tensor;
      const value = at('value') ?? query;
      const valueMask =
        at('valueMask') ?? (at('value') === null ? maskAt('query') : maskAt('value'));
      return this.attend({
        query: asFloat(query),
        value: asFloat(value),
        key: asFloat(at('key') ?? value),
        attentionMask: asBool(at('attentionMask')),
        queryMask: asBool(at('queryMask') ?? maskAt('query')),
        keyMask: bothMasks(asBool(valueMask), asBool(at('keyMask') ?? maskAt('key'))),
        useCausalMask: gathered.useCausalMask ?? this.callArguments.useCausalMask ?? false,
        returnAttentionScores,
        dropout: training === true && this.dropout > 0 ? this.nextDropout() : null,
      });
    });
  }

  /** The query's mask, for layers behind this one whose masks nobody follows (follow_masks.ts). */
  override computeMask(
    inputs: tf.Tensor | tf.Tensor[],
    mask?: tf.Tensor | tf.Tensor[],
  ): tf.Tensor | tf.Tensor[] {
    const query = Array.isArray(inputs) ? inputs[0] : inputs;
    // Without masks tfjs asks for a mark on the output only. It disposes what it gets, so it gets a clone.
    const followed = mask === undefined || query === undefined ? null : maskOf(query, this);
    const given = (Array.isArray(mask) ? mask[0] : mask) ?? null;
    const own = followed === null ? given : tf.clone(followed);
    const masks = this.returnsScores ? [own, null] : own;
    return masks as tf.Tensor | tf.Tensor[];
  }

  override getConfig(): tf.serialization.ConfigDict {
    const {inputs, useCausalMask, returnAttentionScores} = this.callArguments;
    const remembered =
      inputs !== undefined || useCausalMask === true || returnAttentionScores === true;
    const config = {
      ...super.getConfig(),
      dropout: this.dropout,
      seed: this.seed,
      ...(remembered
        ? {
            callArguments: {
              inputs: inputs === undefined ? null : {...inputs},
              useCausalMask,
              returnAttentionScores,
            },
          }
        : {}),
      ...(Object.keys(this.recipe).length > 0 ? {sage: {...this.recipe}} : {}),
      ...(this.keras === 2 ? {keras: 2} : {}),
    };
    return config as unknown as tf.serialization.ConfigDict;
  }

  /** The attention itself, with scores null where nobody reads them. */
  protected compute(
    call: AttendCall,
    {returnAttentionScores, dropout}: AttentionInputs,
  ): {output: tf.Tensor4D; scores: tf.Tensor4D | null} {
    if (this.plain || returnAttentionScores || dropout !== null || tooWide(call)) {
      return attendByOps(call, dropout);
    }
    const output = attendBySage(call, this.recipe);
    this.observer?.(this.site, output, (options) => attendBySage(call, options));
    return {output, scores: null};
  }

  private nextDropout(): ScoreDropout {
    this.runs += 1;
    return {rate: this.dropout, seed: this.seed === null ? undefined : this.seed + this.runs};
  }

  /** A model runs a layer with the arguments of its symbolic call, the same for every use of the layer. */
  private remember(call: GatheredCall): void {
    const inputs = placesToRemember(call.places);
    const {useCausalMask = false, returnAttentionScores = false} = this.callArguments;
    const next: CallArguments = {
      ...(inputs === undefined ? {} : {inputs}),
      useCausalMask: call.useCausalMask ?? useCausalMask,
      returnAttentionScores: call.returnAttentionScores ?? returnAttentionScores,
    };
    const used = this.inboundNodes.length > 0;
    if (used && JSON.stringify(next) !== JSON.stringify(this.callArguments)) {
      throw new SageAttentionError({
        code: 'unsupported-layer',
        argument: this.name,
        message: `${this.name}: a layer that a model uses twice was called with other arguments the second time.`,
        hint: 'tfjs runs every use of a layer alike; make a second layer.',
      });
    }
    this.callArguments = next;
  }

  private named(shapes: readonly Shape[]): AttentionShapes {
    const places = this.buildingPlaces ?? placesOf(this.name, this.callArguments, shapes.length);
    const at = (role: TensorRole): Shape | undefined => {
      const place = places[role];
      return place === undefined ? undefined : shapes[place];
    };
    const query = at('query') ?? [];
    const value = at('value') ?? query;
    return {query, value, key: at('key') ?? value};
  }
}

/** The op's largest head_dim. */
const MAX_HEAD_DIM = 512;

function tooWide({q, v}: AttendCall): boolean {
  return q.shape[3] > MAX_HEAD_DIM || v.shape[3] > MAX_HEAD_DIM;
}

function checkDropout(layer: string, dropout: unknown): number {
  if (dropout == null) return 0;
  if (typeof dropout === 'number' && dropout >= 0 && dropout < 1) return dropout;
  throw new SageAttentionError({
    code: 'invalid-option',
    argument: 'dropout',
    message: `${layer}: \`dropout\` is ${describeValue(dropout)}, expected a number from 0 to below 1.`,
    hint: 'It is the share of the scores that training drops.',
  });
}

function shapeList(shape: Shape | Shape[]): Shape[] {
  return Array.isArray(shape[0]) ? (shape as Shape[]) : [shape as Shape];
}

function asFloat(tensor: tf.Tensor): tf.Tensor {
  return tensor.dtype === 'float32' ? tensor : tf.cast(tensor, 'float32');
}

function asBool(mask: tf.Tensor | null): tf.Tensor | null {
  return mask === null || mask.dtype === 'bool' ? mask : tf.cast(mask, 'bool');
}

function bothMasks(a: tf.Tensor | null, b: tf.Tensor | null): tf.Tensor | null {
  if (a === null || b === null || a === b) return a ?? b;
  return tf.logicalAnd(a, b);
}
