/**
 * What a call of an attention layer is made of. Keras passes tensors by position and by keyword; a tfjs layer gets one
 * list, and nothing else at prediction. So a layer remembers, in its configuration, what each tensor of that list is,
 * and the flags of its call.
 */
import type * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import {describeValue, SageAttentionError} from '../runtime/errors.js';
import {refuseUnknownKeys} from '../runtime/unknown_keys.js';

/** What a tensor is to the layer, by Keras' names of the arguments. */
export const TENSOR_ROLES = [
  'query',
  'value',
  'key',
  'attentionMask',
  'queryMask',
  'valueMask',
  'keyMask',
] as const;
export type TensorRole = (typeof TENSOR_ROLES)[number];

/** Places in the list of a layer's inputs, by role. */
export type TensorPlaces = Readonly<Partial<Record<TensorRole, number>>>;

/** The part of a call that stays the same for every run of a model. */
export interface CallArguments {
  /**
   * Where in the input list each tensor is; without value it is query, without key value. Default: query, value, key,
   * attentionMask, as far as the list goes.
   */
  readonly inputs?: TensorPlaces | undefined;
  /** Query i sees keys 0..i. Default `false`. */
  readonly useCausalMask?: boolean | undefined;
  /** The layer returns `[output, scores]`. Default `false`. */
  readonly returnAttentionScores?: boolean | undefined;
}

/** Keyword arguments of `apply`: the tensors that are not in the list, flags, and what tfjs adds. */
export interface AttentionCallKwargs extends Omit<CallArguments, 'inputs'> {
  value?: tf.Tensor | tfl.SymbolicTensor | undefined;
  key?: tf.Tensor | tfl.SymbolicTensor | undefined;
  /** bool, or numbers where 0 = not attended: [B,T,S], or with the heads [B,H,T,S]; axes of 1 broadcast. */
  attentionMask?: tf.Tensor | tfl.SymbolicTensor | undefined;
  /** bool [B,T]. */
  queryMask?: tf.Tensor | tfl.SymbolicTensor | undefined;
  /** bool [B,S]. */
  valueMask?: tf.Tensor | tfl.SymbolicTensor | undefined;
  /** bool [B,S]. */
  keyMask?: tf.Tensor | tfl.SymbolicTensor | undefined;
  /** Keras masks of the listed inputs, in their order; null = none. One tensor is not read: tfjs passes a wrong one. */
  mask?: tf.Tensor | readonly (tf.Tensor | null)[] | null | undefined;
  /** Dropout is active. Default `false`. */
  training?: boolean | undefined;
}

type AnyTensor = tf.Tensor | tfl.SymbolicTensor;

const KNOWN_KWARGS: ReadonlySet<string> = new Set<keyof AttentionCallKwargs>([
  'value',
  'key',
  'attentionMask',
  'queryMask',
  'valueMask',
  'keyMask',
  'mask',
  'training',
  'useCausalMask',
  'returnAttentionScores',
]);

/** One call with every tensor in the list and named. */
export interface GatheredCall {
  readonly tensors: AnyTensor[];
  readonly places: TensorPlaces;
  /** undefined: as the layer remembers. */
  readonly useCausalMask: boolean | undefined;
  readonly returnAttentionScores: boolean | undefined;
}

/** Order of a list whose tensors nobody named. */
const DEFAULT_ORDER = ['query', 'value', 'key', 'attentionMask'] as const;

/** What the tensors of a list of `count` are. */
export function placesOf(layer: string, {inputs}: CallArguments, count: number): TensorPlaces {
  const expected = inputs === undefined ? null : countOf(inputs);
  if (inputs !== undefined && expected === count) return inputs;
  if (count >= 1 && count <= DEFAULT_ORDER.length) return naturalPlaces(count);
  throw callError(
    layer,
    'inputs',
    `${count} tensors, expected ${expected ?? '1 to 4'}`,
    'Pass [query, value], [query, value, key] or [query, value, key, attentionMask], and name others by keyword.',
  );
}

/** Tensors in the list that these places speak of. */
function countOf(places: TensorPlaces): number {
  return Math.max(...Object.values(places)) + 1;
}

function naturalPlaces(count: number): TensorPlaces {
  return Object.fromEntries(DEFAULT_ORDER.slice(0, count).map((role, i) => [role, i]));
}

/** Places to remember: undefined when they are those that a layer takes anyway. */
export function placesToRemember(places: TensorPlaces): TensorPlaces | undefined {
  const natural = naturalPlaces(countOf(places));
  const isNatural =
    Object.keys(places).length === Object.keys(natural).length &&
    TENSOR_ROLES.every((role) => places[role] === natural[role]);
  return isNatural ? undefined : places;
}

/**
 * A list in which no tensor stands twice: tfjs frees a tensor too early that a layer of a model takes twice.
 *
 * @param same Whether two entries are the same tensor.
 */
export function withoutRepeats<T>(
  tensors: readonly T[],
  places: TensorPlaces,
  same: (a: T, b: T) => boolean,
): {tensors: T[]; places: TensorPlaces} {
  const unique: T[] = [];
  const found: Partial<Record<TensorRole, number>> = {};
  for (const role of TENSOR_ROLES) {
    const place = places[role];
    const tensor = place === undefined ? undefined : tensors[place];
    if (tensor === undefined) continue;
    const known = unique.findIndex((other) => same(other, tensor));
    const at = known < 0 ? unique.push(tensor) - 1 : known;
    // What a layer takes by itself need not be said.
    const implied =
      role === 'value' ? found.query : role === 'key' ? (found.value ?? found.query) : undefined;
    if (at !== implied) found[role] = at;
  }
  return {tensors: unique, places: found};
}

/** Puts the tensors among the keyword arguments behind those of the list. */
export function gatherCall(
  layer: string,
  inputs: AnyTensor | AnyTensor[],
  kwargs: AttentionCallKwargs,
  remembered: CallArguments,
): GatheredCall {
  refuseUnknownKeys(layer, kwargs, KNOWN_KWARGS);
  const tensors = Array.isArray(inputs) ? [...inputs] : [inputs];
  const named = TENSOR_ROLES.filter((role) => role !== 'query' && kwargs[role] != null);
  const places: Partial<Record<TensorRole, number>> = {
    ...placesOf(layer, named.length === 0 ? remembered : {}, tensors.length),
  };
  for (const role of named) {
    if (places[role] !== undefined) {
      throw callError(
        layer,
        role,
        'passed twice, in the list and by keyword',
        'Pass each tensor once.',
      );
    }
    places[role] = tensors.push(kwargs[role as Exclude<TensorRole, 'query'>] as AnyTensor) - 1;
  }
  const symbolic = tensors.filter((tensor) => tensor instanceof tfl.SymbolicTensor).length;
  if (symbolic !== 0 && symbolic !== tensors.length) {
    throw callError(
      layer,
      named[0] ?? 'inputs',
      'tensors mixed with symbolic tensors',
      'A model needs all of them symbolic: make the others inputs of the model.',
    );
  }
  return {
    ...(symbolic === 0 ? {tensors, places} : withoutRepeats(tensors, places, (a, b) => a === b)),
    useCausalMask: flag(layer, 'useCausalMask', kwargs.useCausalMask),
    returnAttentionScores: flag(layer, 'returnAttentionScores', kwargs.returnAttentionScores),
  };
}

/** `callArguments` of a layer's configuration, checked. */
export function checkCallArguments(layer: string, given: CallArguments | undefined): CallArguments {
  const {inputs, useCausalMask, returnAttentionScores} = given ?? {};
  const valid =
    inputs == null ||
    (typeof inputs === 'object' &&
      inputs.query !== undefined &&
      Object.entries(inputs).every(
        ([role, place]) => TENSOR_ROLES.includes(role as TensorRole) && Number.isSafeInteger(place),
      ));
  if (!valid) {
    throw callError(
      layer,
      'callArguments',
      `inputs ${describeValue(inputs)}`,
      `Name the places of ${TENSOR_ROLES.join(', ')}, query at least.`,
    );
  }
  return {
    ...(inputs == null ? {} : {inputs}),
    useCausalMask: flag(layer, 'useCausalMask', useCausalMask) ?? false,
    returnAttentionScores: flag(layer, 'returnAttentionScores', returnAttentionScores) ?? false,
  };
}

function flag(layer: string, argument: string, value: unknown): boolean | undefined {
  if (value == null) return undefined;
  if (typeof value === 'boolean') return value;
  throw callError(layer, argument, describeValue(value), 'Pass true or false.');
}

function callError(
  layer: string,
  argument: string,
  what: string,
  hint: string,
): SageAttentionError {
  return new SageAttentionError({
    code: 'invalid-option',
    argument,
    message: `${layer}: \`${argument}\` is ${what}.`,
    hint,
  });
}
