/**
 * P·V with the accumulators of the published kernels (docs/numerics.md 5): fp16 accumulators of 64 keys, fp16 throughout,
 * and the 13 mantissa bits that an FP8 tensor core keeps (SageAttention2 3.4). Everything else is summed in float64.
 */
import {roundFp16} from './formats.js';
import type {QuantizedV} from './operands.js';
import type {Recipe} from './recipes.js';

interface AccumulatorModel {
  /** Keys between two roundings of the accumulator. */
  readonly step: number;
  /** Keys after which the accumulator is added to the total and starts again. */
  readonly span: number;
  readonly round: (x: number) => number;
}

/** An MMA instruction takes 16 keys of fp16 and 32 of e4m3; a tile of the published kernels has 64 keys. */
const FP16_STEP = 16;
const FP8_STEP = 32;
const TILE = 64;

const word = new Float32Array(1);
const wordBits = new Uint32Array(word.buffer);
/** Clears the low 10 of float32's 23 mantissa bits. */
const KEEP_13_BITS = 0xfffffc00;

/** Cuts to 13 mantissa bits, towards zero. */
function cutMantissa(x: number): number {
  word[0] = x;
  wordBits[0]! &= KEEP_13_BITS;
  return word[0];
}

function accumulatorModel(recipe: Recipe): AccumulatorModel | null {
  switch (recipe.pvAccumulator) {
    case 'fp16':
      return {step: FP16_STEP, span: Infinity, round: roundFp16};
    case 'fp16+fp32':
      return {step: FP16_STEP, span: TILE, round: roundFp16};
    case 'fp32+fp16':
      return {step: FP8_STEP, span: TILE, round: roundFp16};
    case 'fp32':
      return recipe.precision === 'int8_fp8' || recipe.precision === 'int4_fp8'
        ? {step: FP8_STEP, span: Infinity, round: cutMantissa}
        : null;
    case 'fp32+fp32':
      return null;
  }
}

/** sum_j P[j] · code[j, d] (times the token scale where v has one) for one row of rounded P, [dim]. */
export function accumulatePv(
  recipe: Recipe,
  p: Float64Array,
  v: QuantizedV,
  dim: number,
): Float64Array {
  const model = accumulatorModel(recipe);
  const {codes, tokenScale} = v;
  const total = new Float64Array(dim);
  const accumulator = model ? new Float64Array(dim) : total;
  const step = model ? model.step : Math.max(1, p.length);
  for (let first = 0; first < p.length; first += step) {
    const last = Math.min(p.length, first + step);
    for (let j = first; j < last; j++) {
      if (p[j] === 0) continue;
      const weight = tokenScale ? p[j]! * tokenScale[j]! : p[j]!;
      for (let d = 0; d < dim; d++) accumulator[d]! += weight * codes[j * dim + d]!;
    }
    if (!model) continue;
    for (let d = 0; d < dim; d++) accumulator[d] = model.round(accumulator[d]!);
    if (last % model.span === 0 || last === p.length) {
      for (let d = 0; d < dim; d++) total[d]! += accumulator[d]!;
      accumulator.fill(0);
    }
  }
  return total;
}
