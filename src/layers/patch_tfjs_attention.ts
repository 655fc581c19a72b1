/**
 * sageAttention inside the attention layers of tfjs' own, unexported nlp folder, and of user layers with the same
 * methods. They are known by their methods, so each proves at its first run that its computeAttention is what it is
 * taken for; one that is not runs on as it was, and the report says so.
 */
import * as tf from '@tensorflow/tfjs-core';
import type {AttentionObserver, RecipeOptions} from '../replace/model_attentions.js';
import {attendByOps, attendBySage, type AttendCall} from './attend.js';
import {attentionAxes, foldMask} from './attention_axes.js';
import {cachedCall, type CachedAttention} from './cached_attention.js';
import type {Layer} from './follow_masks.js';

type ComputeAttention = (
  query: tf.Tensor,
  key: tf.Tensor,
  value: tf.Tensor,
  attentionMask?: tf.Tensor | null,
  training?: boolean,
) => [tf.Tensor, tf.Tensor];

/** What the layers of the nlp folder have. */
interface TfjsAttention {
  readonly keyDim: number;
  readonly dropout?: number;
  readonly attentionAxes?: readonly number[] | null;
  call(inputs: tf.Tensor | tf.Tensor[], kwargs: Record<string, unknown>): tf.Tensor | tf.Tensor[];
  buildAttention: unknown;
  computeAttention: ComputeAttention;
  computeAttentionMask?: (
    query: tf.Tensor,
    value: tf.Tensor,
    attentionMask?: tf.Tensor | null,
    useCausalMask?: boolean,
  ) => tf.Tensor | undefined;
}

/** One patched layer. */
export interface PatchedAttention {
  readonly layer: Layer;
  recipe: RecipeOptions;
  observer: {site: string; tell: AttentionObserver} | null;
  /** Computes as the layer did before. */
  plain: boolean;
  /** Why the layer runs on as it was; null while it does not. */
  readonly refusal: () => string | null;
}

const patches = new WeakMap<Layer, PatchedAttention>();

/** Whether a layer has the methods of tfjs' MultiHeadAttention. */
export function isTfjsAttention(layer: Layer): layer is Layer & TfjsAttention {
  const {computeAttention, buildAttention, keyDim} = layer as Partial<TfjsAttention>;
  return (
    typeof computeAttention === 'function' &&
    typeof buildAttention === 'function' &&
    typeof keyDim === 'number'
  );
}

function isCached(layer: Layer): layer is Layer & TfjsAttention & CachedAttention {
  return (
    isTfjsAttention(layer) &&
    typeof (layer as Partial<CachedAttention>).callAndReturnCache === 'function'
  );
}

/** What a report calls the layer. */
export function patternOf(layer: Layer): string {
  return isCached(layer) ? 'attention layer with a cache' : 'attention layer';
}

/**
 * Patches one layer in place; again changes nothing.
 *
 * @param refused Told when the layer turns out at a run to be none that can be replaced.
 */
export function patchTfjsAttention(
  layer: Layer & TfjsAttention,
  refused: (reason: string) => void,
): PatchedAttention {
  const known = patches.get(layer);
  if (known !== undefined) return known;
  let refusal: string | null = null;
  const patched: PatchedAttention = {
    layer,
    recipe: {},
    observer: null,
    plain: false,
    refusal: () => refusal,
  };
  const refuse = (reason: string): void => {
    refusal = reason;
    refused(reason);
  };
  patches.set(layer, patched);
  if (isCached(layer)) patchCached(layer, patched, refuse);
  else patchCall(layer, patched, refuse);
  return patched;
}

/** Queries and keys of the first run that the proof compares. */
const PROOF_TOKENS = 16;

/** Far above what float32 sums differ by, far below what another formula gives. */
const PROOF_TOLERANCE = 1e-3;

function patchCall(
  layer: Layer & TfjsAttention,
  patched: PatchedAttention,
  refuse: (reason: string) => void,
): void {
  const original = {
    call: layer.call.bind(layer),
    computeAttention: layer.computeAttention.bind(layer),
    computeAttentionMask: layer.computeAttentionMask?.bind(layer),
  };
  let replacing = false;
  let causal = false;
  let proved = false;
  layer.computeAttentionMask = (query, value, mask, useCausalMask) => {
    // A causal mask is a flag of the op, and no T x S tensor.
    causal = replacing && useCausalMask === true;
    return original.computeAttentionMask?.(query, value, mask, causal ? false : useCausalMask);
  };
  if (original.computeAttentionMask === undefined) {
    Reflect.deleteProperty(layer, 'computeAttentionMask');
  }
  layer.computeAttention = (query, key, value, mask, training) => {
    const call = replacing ? describe(layer, {query, key, value, mask, causal}) : null;
    const dropping = training === true && (layer.dropout ?? 0) > 0;
    if (call === null || dropping) {
      const whole = causal ? withTriangle(query, key, mask) : mask;
      return original.computeAttention(query, key, value, whole, training);
    }
    if (!proved) {
      if (!provesRight(call, query, key, value, mask, original.computeAttention)) {
        throw new NotThatAttention('its computeAttention is no softmax(q·k / sqrt(keyDim))·v');
      }
      proved = true;
    }
    const output = attendBySage(call, patched.recipe);
    patched.observer?.tell(patched.observer.site, output, (options) => attendBySage(call, options));
    // No scores: whoever reads them fails, and the layer runs as it was.
    return [output, null as unknown as tf.Tensor];
  };
  const tryToReplace: (...args: Parameters<TfjsAttention['call']>) => Result | Failure = (
    inputs,
    kwargs,
  ) => {
    replacing = true;
    try {
      const result = original.call(inputs, kwargs);
      const values = Array.isArray(result) ? result : [result];
      if (values.every((value) => value instanceof tf.Tensor)) return result;
      tf.dispose(result);
      return new Failure(null);
    } catch (cause) {
      return new Failure(cause);
    } finally {
      replacing = false;
      causal = false;
    }
  };
  layer.call = (inputs, kwargs) => {
    if (patched.plain || patched.refusal() !== null) return original.call(inputs, kwargs);
    const attempt = tryToReplace(inputs, kwargs);
    if (!(attempt instanceof Failure)) return attempt;
    // Throws itself where the call was wrong in any case; then nothing is known of the layer.
    const result = original.call(inputs, kwargs);
    refuse(
      attempt.cause instanceof NotThatAttention
        ? attempt.cause.message
        : 'its call() reads the scores, which sageAttention never holds in memory',
    );
    return result;
  };
}

function patchCached(
  layer: Layer & TfjsAttention & CachedAttention,
  patched: PatchedAttention,
  refuse: (reason: string) => void,
): void {
  const original = layer.callAndReturnCache.bind(layer);
  let proved = false;
  layer.callAndReturnCache = (query, kwargs) => {
    if (patched.plain || patched.refusal() !== null) return original(query, kwargs);
    if (!proved) {
      // Builds the layer, too.
      const before = original(query, kwargs);
      const [output] = cachedCall(layer, query, kwargs, (call) => attendByOps(call, null).output);
      const right = isClose(output, before[0]);
      output.dispose();
      if (!right) {
        refuse('its callAndReturnCache is no softmax(q·k / sqrt(keyDim))·v over a cache');
        return before;
      }
      proved = true;
      tf.dispose(before[0]);
      if (before[1] != null && before[1] !== kwargs.cache) tf.dispose(before[1]);
    }
    return cachedCall(layer, query, kwargs, (call) => {
      const output = attendBySage(call, patched.recipe);
      patched.observer?.tell(patched.observer.site, output, (options) =>
        attendBySage(call, options),
      );
      return output;
    });
  };
}

type Result = tf.Tensor | tf.Tensor[];

/** Why a call did not go through the op. */
class Failure {
  constructor(readonly cause: unknown) {}
}

class NotThatAttention extends Error {}

/** The call as the op takes it; null where only the original serves. */
function describe(
  {keyDim, attentionAxes: axes, name}: Layer & TfjsAttention,
  {
    query,
    key,
    value,
    mask,
    causal,
  }: {
    query: tf.Tensor;
    key: tf.Tensor;
    value: tf.Tensor;
    mask: tf.Tensor | null | undefined;
    causal: boolean;
  },
): AttendCall | null {
  if (query.rank !== 4 || (axes != null && axes.length !== 1)) return null;
  if (Math.max(query.shape[3] ?? 0, value.shape[3] ?? 0) > 512) return null;
  return {
    q: query as tf.Tensor4D,
    k: key as tf.Tensor4D,
    v: value as tf.Tensor4D,
    scale: 1 / Math.sqrt(keyDim),
    causal,
    window: null,
    queryMask: null,
    keyMask: null,
    attentionMask:
      mask == null
        ? null
        : foldMask(name, tf.cast(mask, 'bool'), attentionAxes(name, [1], 3), query),
    emptyRows: 'mean',
  };
}

/** Compares both ways on the first tokens of the first call. */
function provesRight(
  call: AttendCall,
  query: tf.Tensor,
  key: tf.Tensor,
  value: tf.Tensor,
  mask: tf.Tensor | null | undefined,
  compute: ComputeAttention,
): boolean {
  return tf.tidy(() => {
    const tokens = (x: tf.Tensor): tf.Tensor4D => {
      const [batch = 1, count = 1, heads = 1, dim = 1] = x.shape;
      return tf.slice(
        x as tf.Tensor4D,
        [0, 0, 0, 0],
        [batch, Math.min(count, PROOF_TOKENS), heads, dim],
      );
    };
    const [q, k, v] = [tokens(query), tokens(key), tokens(value)];
    const shortened = (m: tf.Tensor | null | undefined): tf.Tensor | null =>
      m == null
        ? null
        : tf.slice(
            m,
            m.shape.map(() => 0),
            m.shape.map((size, axis) => (axis >= m.rank - 2 ? Math.min(size, PROOF_TOKENS) : size)),
          );
    const attentionMask = shortened(call.attentionMask) as tf.Tensor4D | null;
    const mine = attendByOps({...call, q, k, v, attentionMask}, null).output;
    const part = shortened(mask);
    const [theirs] = compute(q, k, v, call.causal ? withTriangle(q, k, part) : part, false);
    return isClose(mine, theirs);
  });
}

/** A mask and the causal triangle as one, for the original. */
function withTriangle(
  query: tf.Tensor,
  key: tf.Tensor,
  mask: tf.Tensor | null | undefined,
): tf.Tensor {
  const i = tf.expandDims(tf.range(0, query.shape[1] ?? 0), 1);
  const j = tf.expandDims(tf.range(0, key.shape[1] ?? 0), 0);
  const triangle = tf.expandDims(tf.greaterEqual(i, j), 0);
  return mask == null ? triangle : tf.logicalAnd(tf.cast(mask, 'bool'), triangle);
}

function isClose(a: tf.Tensor, b: tf.Tensor): boolean {
  return tf.tidy(() => {
    const size = tf.max(tf.abs(b)).dataSync()[0] ?? 0;
    const difference = tf.max(tf.abs(tf.sub(a, b))).dataSync()[0] ?? Infinity;
    return difference <= PROOF_TOLERANCE * Math.max(size, Number.MIN_VALUE);
  });
}
