/**
 * NVFP4: e2m1 codes in groups of 16 with an e4m3 scale, a power of two per head, and the Hadamard rotation of q and k
 * (docs/numerics.md 4.5; SageAttention3 3.1). Values are kept as code · group scale, which float32 holds exactly.
 */
import {roundE2m1, roundUe4m3} from './formats.js';
import {largestMagnitude, roundUpTo} from './operands.js';
import type {HeadValues} from './operands.js';
import type {TokenCodes} from './quantize_integer.js';

/** Elements that share one scale. */
export const NVFP4_GROUP = 16;

/** Largest e2m1 code. */
const E2M1_TOP = 6;
/**
 * The other scales, as factors of amax. amax / 4: the largest value lands on 4 and its neighbours on a finer grid.
 * 2 amax / 13: the largest is cut by a thirteenth, all others get a grid finer by that; of the factors near it, this one
 * lowers the error of normal numbers the most.
 */
const OTHER_SCALES = [1 / 4, Math.fround(2 / 13)];
/** 2^-e stays a normal float32 number, for heads of subnormal values. */
const MAX_HEAD_EXPONENT = 100;

const f32 = Math.fround;

/** e such that the head's largest magnitude times 2^e lies in [16, 32), far from both ends of e4m3; 0 for an all-zero head. */
export function headExponent(head: HeadValues): number {
  const largest = largestMagnitude(head.values);
  if (largest === 0) return 0;
  return Math.min(MAX_HEAD_EXPONENT, 4 - floorLog2(largest));
}

const bits = new DataView(new ArrayBuffer(8));

/** floor(log2(x)) from the exponent field: exact where Math.log2 rounds. Every float32 is a normal float64. */
function floorLog2(x: number): number {
  bits.setFloat64(0, x);
  return ((bits.getUint16(0) >> 4) & 0x7ff) - 1023;
}

/**
 * q or k: groups along head_dim, which is padded with zeros to a multiple of 16. `exponent` is the head's e,
 * `powers` the channels' powers of two, [dim], or null.
 */
export function quantizeTokensNvfp4(
  head: HeadValues,
  exponent: number,
  rotate: boolean,
  fourSix: boolean,
  powers: Float32Array | null = null,
): TokenCodes {
  const {values, tokens, dim} = head;
  const dims = roundUpTo(dim, NVFP4_GROUP);
  const codes = new Float32Array(tokens * dims);
  const scale = new Float32Array(tokens).fill(2 ** -exponent);
  const factors = new Float32Array(dim).fill(2 ** exponent);
  if (powers) for (let d = 0; d < dim; d++) factors[d]! *= powers[d]!;
  const row = new Float32Array(dims);
  for (let t = 0; t < tokens; t++) {
    row.fill(0);
    // First, so that the sums of the rotation cannot overflow.
    for (let d = 0; d < dim; d++) row[d] = values[t * dim + d]! * factors[d]!;
    if (rotate) rotateRow(row);
    for (let first = 0; first < dims; first += NVFP4_GROUP) {
      for (let i = 0; i < NVFP4_GROUP; i++) group[i] = row[first + i]!;
      const chosen = quantizeGroup(fourSix);
      codes.set(chosen, t * dims + first);
    }
  }
  return {codes, dims, scale};
}

/** v: groups of 16 consecutive tokens of one channel, zeros past the end. Returns [tokens, dim] values before 2^-e. */
export function quantizeChannelsNvfp4(
  head: HeadValues,
  exponent: number,
  fourSix: boolean,
): Float32Array {
  const {values, tokens, dim} = head;
  const codes = new Float32Array(tokens * dim);
  const up = 2 ** exponent;
  for (let first = 0; first < tokens; first += NVFP4_GROUP) {
    const count = Math.min(NVFP4_GROUP, tokens - first);
    for (let d = 0; d < dim; d++) {
      group.fill(0);
      for (let i = 0; i < count; i++) group[i] = values[(first + i) * dim + d]! * up;
      const chosen = quantizeGroup(fourSix);
      for (let i = 0; i < count; i++) codes[(first + i) * dim + d] = chosen[i]!;
    }
  }
  return codes;
}

/** Multiplies a row by an orthonormal Hadamard matrix in blocks of the largest power of two that divides its length. */
export function rotateRow(row: Float32Array): void {
  const block = row.length & -row.length;
  for (let half = 1; half < block; half *= 2) {
    for (let first = 0; first < row.length; first += 2 * half) {
      for (let i = first; i < first + half; i++) {
        const a = row[i]!;
        const b = row[i + half]!;
        row[i] = a + b;
        row[i + half] = a - b;
      }
    }
  }
  const norm = f32(1 / Math.sqrt(block));
  for (let i = 0; i < row.length; i++) row[i]! *= norm;
}

// Scratch of the group at hand: no allocation per group.
const group = new Float32Array(NVFP4_GROUP);
let best = new Float32Array(NVFP4_GROUP);
let tried = new Float32Array(NVFP4_GROUP);

/** Quantises `group`; returns code · scale, valid until the next call. */
function quantizeGroup(fourSix: boolean): Float32Array {
  const amax = largestMagnitude(group);
  let least = quantizeGroupBy(f32(amax / E2M1_TOP), best);
  if (!fourSix) return best;
  for (const factor of OTHER_SCALES) {
    const error = quantizeGroupBy(f32(amax * factor), tried);
    if (!(error < least)) continue;
    least = error;
    [best, tried] = [tried, best];
  }
  return best;
}

/** Quantises `group` with the e4m3 scale next to `wanted` into `out`; returns the squared error, summed in float32. */
function quantizeGroupBy(wanted: number, out: Float32Array): number {
  const scale = roundUe4m3(wanted);
  const inverse = scale === 0 ? 0 : f32(1 / scale);
  let error = 0;
  for (let i = 0; i < NVFP4_GROUP; i++) {
    const x = group[i]!;
    const value = roundE2m1(f32(x * inverse)) * scale + 0;
    out[i] = value;
    const difference = f32(x - value);
    error = f32(error + f32(difference * difference));
  }
  return error;
}
