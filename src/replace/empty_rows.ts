/**
 * Masks of finite values and rows that see no key. Where the model gives hidden keys a finite score, such a row averages
 * over the keys that it should not see; attention by boolean masks gives 0 there. Whether a call has such a row is found
 * on the host, and only where it can matter.
 */
import * as tf from '@tensorflow/tfjs-core';
import type {AlignedOperands, AlignedStep} from './aligned_operands.js';

/** Scores of a model differ by far less than this; what lies further below has no weight. */
const SAFE_DISTANCE = 1000;

/** Backends whose tensors the host reads at no cost worth mentioning. */
const HOST_BACKENDS = new Set(['cpu', 'wasm', 'tensorflow']);

type Causal = Extract<AlignedStep, {op: 'causal'}>;

/** Whether hiding keys for good would change what this call means. */
export function hasEmptyRows({q, k, layout, steps}: AlignedOperands): boolean {
  const hard = steps.filter((step) => step.op !== 'add' && Number.isFinite(step.value));
  if (hard.length === 0) return false;
  const soft = steps.filter((step) => step.op === 'add');
  const tokenAxis = layout === 'NHD' ? 1 : 2;
  const qLen = q.shape[tokenAxis] as number;
  const kvLen = k.shape[tokenAxis] as number;
  const causal = steps.filter((step): step is Causal => step.op === 'causal');
  const neverEmpty = causal.every(({corner}) => corner === 'top_left' || kvLen >= qLen);
  const onlyCausal = causal.length === steps.length;
  if (onlyCausal) return !neverEmpty;
  if (!HOST_BACKENDS.has(tf.getBackend())) return true;
  const value = Math.max(...hard.map((step) => (step.op === 'add' ? -Infinity : step.value)));
  const ranges = soft.map(({tensor, factor}) => scaledRange(tensor, factor));
  const lowest = ranges.reduce((sum, {least}) => sum + least, 0);
  const highest = ranges.reduce((sum, {most}) => sum + most, 0);
  const selects = steps.filter((step) => step.op === 'select');
  const allSeen = selects.length === 0 && neverEmpty;
  if (allSeen && lowest > value + highest + SAFE_DISTANCE) return false;
  return someRowIsEmpty(steps, qLen, kvLen, value + Math.max(0, highest) + SAFE_DISTANCE);
}

interface ValueRange {
  readonly least: number;
  readonly most: number;
}

const ranges = new WeakMap<object, ValueRange>();

/** Least and largest value; remembered, as a model's constant biases come again at every call. */
function scaledRange(tensor: tf.Tensor, factor: number): ValueRange {
  let range = ranges.get(tensor.dataId);
  if (range === undefined) {
    const values = tensor.dataSync<'float32'>();
    let least = Infinity;
    let most = -Infinity;
    for (let i = 0; i < values.length; i += 1) {
      const value = values[i] as number;
      if (value < least) least = value;
      if (value > most) most = value;
    }
    range = {least, most};
    ranges.set(tensor.dataId, range);
  }
  const {least, most} = range;
  return factor < 0
    ? {least: most * factor, most: least * factor}
    : {least: least * factor, most: most * factor};
}

/** Whether a row has no key that is seen by every condition and whose biases reach `threshold`. */
function someRowIsEmpty(
  steps: readonly AlignedStep[],
  qLen: number,
  kvLen: number,
  threshold: number,
): boolean {
  const readers = steps.flatMap((step) => (step.op === 'causal' ? [] : [maskReader(step)]));
  const causal = steps.filter((step): step is Causal => step.op === 'causal');
  const end = (row: number) =>
    causal.reduce((least, {corner}) => {
      const offset = corner === 'top_left' ? 0 : kvLen - qLen;
      return Math.min(least, row + offset + 1);
    }, kvLen);
  const batches = Math.max(1, ...readers.map(({shape}) => shape[0] as number));
  const heads = Math.max(1, ...readers.map(({shape}) => shape[1] as number));
  const hasRows = causal.length > 0 || readers.some(({shape}) => shape[2] !== 1);
  const rows = hasRows ? qLen : 1;
  for (let b = 0; b < batches; b += 1) {
    for (let h = 0; h < heads; h += 1) {
      for (let i = 0; i < rows; i += 1) {
        if (!rowHasKey(readers, b, h, i, end(i), threshold)) return true;
      }
    }
  }
  return false;
}

interface MaskReader {
  readonly shape: readonly number[];
  readonly values: ArrayLike<number>;
  /** 0 for a condition. */
  readonly factor: number;
}

function maskReader(step: Exclude<AlignedStep, Causal>): MaskReader {
  return {
    shape: step.tensor.shape,
    values: step.tensor.dataSync(),
    factor: step.op === 'add' ? step.factor : 0,
  };
}

function rowHasKey(
  readers: readonly MaskReader[],
  b: number,
  h: number,
  i: number,
  end: number,
  threshold: number,
): boolean {
  for (let j = 0; j < end; j += 1) {
    let score = 0;
    let isSeen = true;
    for (const {shape, values, factor} of readers) {
      const [batches, heads, rows, columns] = shape as [number, number, number, number];
      const at =
        ((batches === 1 ? 0 : b) * heads + (heads === 1 ? 0 : h)) * rows + (rows === 1 ? 0 : i);
      const value = values[at * columns + (columns === 1 ? 0 : j)] as number;
      if (factor === 0) isSeen &&= value !== 0;
      else score += factor * value;
    }
    if (isSeen && score > threshold) return true;
  }
  return false;
}
