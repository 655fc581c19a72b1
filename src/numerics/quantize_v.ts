/**
 * Quantisers of v (docs/numerics.md 4.6): per channel over all tokens, per block of 64 tokens, per group of 16, or a plain
 * 16-bit format. SageAttention2 3.3 for e4m3 per channel; SageAttention 4.3 for int8 per block.
 */
import {roundBf16, roundE4m3, roundFp16, roundHalfAway, roundHalfEven} from './formats.js';
import {readHead, TINY} from './operands.js';
import type {HeadSource, HeadValues, QuantizedV} from './operands.js';
import {headExponent, quantizeChannelsNvfp4} from './quantize_nvfp4.js';
import type {PvFormat, Recipe, Rounding} from './recipes.js';
import {blockMeans, finiteCount, subtractMeans} from './smoothing.js';

const {abs, max, min} = Math;
const f32 = Math.fround;
const FP16_MAX = 65504;
/** Tokens per scale under `vScale: 'block64'`. */
const SCALE_BLOCK = 64;

/** Quantises one head of v as the recipe says. The source is not changed. */
export function quantizeV(recipe: Recipe, source: HeadSource): QuantizedV {
  const head = readHead(source);
  // Before smoothing: the exponent is that of the input.
  const exponent = recipe.pv === 'nvfp4' && recipe.headExponent ? headExponent(head) : 0;
  let mean: Float32Array | null = null;
  if (recipe.smoothV > 0) {
    mean = blockMeans(head, recipe.smoothV);
    subtractMeans(head, mean, recipe.smoothV);
  }
  const rounded = quantizeValues(recipe, head, exponent);
  if (mean) takeOffMeansOfRounded(mean, head, rounded, recipe.smoothV);
  return {...rounded, mean, notFinite: head.notFinite};
}

type ValueCodes = Pick<QuantizedV, 'codes' | 'channelScale' | 'tokenScale'>;

/**
 * Means as they are put back: less the mean of the block's rounded values, so that a block as a whole is not rounded at all.
 * What is left of an element's rounding error weighs only by how far its p lies from the block's mean p.
 */
function takeOffMeansOfRounded(
  mean: Float32Array,
  head: HeadValues,
  {codes, channelScale, tokenScale}: ValueCodes,
  rows: number,
): void {
  const {tokens, dim, notFinite} = head;
  const sums = new Float64Array(dim);
  for (let begin = 0, block = 0; begin < tokens; begin += rows, block += dim) {
    const end = min(tokens, begin + rows);
    sums.fill(0);
    for (let t = begin; t < end; t++) {
      const scale = tokenScale ? tokenScale[t]! : 1;
      for (let d = 0; d < dim; d++) sums[d]! += codes[t * dim + d]! * scale;
    }
    for (let d = 0; d < dim; d++) {
      const count = finiteCount(notFinite, begin, end, dim, d);
      if (count > 0) mean[block + d]! -= (sums[d]! * channelScale[d]!) / count;
    }
  }
}

function quantizeValues(recipe: Recipe, head: HeadValues, exponent: number): ValueCodes {
  const ones = new Float32Array(head.dim).fill(1);
  switch (recipe.pv) {
    case 'float32':
      return {codes: head.values, channelScale: ones, tokenScale: null};
    case 'bf16':
      return {codes: head.values.map(roundBf16), channelScale: ones, tokenScale: null};
    case 'fp16':
      return quantizeFp16(head);
    case 'nvfp4':
      return {
        codes: quantizeChannelsNvfp4(head, exponent, recipe.fourSix),
        channelScale: ones.fill(2 ** -exponent),
        tokenScale: null,
      };
    case 'int16':
    case 'int8':
    case 'e4m3': {
      const round = roundingOf(recipe.pv, recipe.rounding, recipe.vTop);
      return recipe.vScale === 'block64'
        ? quantizeBlocks(head, recipe.vTop, round)
        : quantizeChannels(head, recipe.vTop, round);
    }
  }
}

function roundingOf(format: PvFormat, rounding: Rounding, top: number): (x: number) => number {
  if (format === 'e4m3') return roundE4m3;
  const round = rounding === 'away' ? roundHalfAway : roundHalfEven;
  // Adding 0 turns -0 into 0: integers have one zero.
  return (x) => min(top, max(-top, round(x))) + 0;
}

/** Largest magnitude of each channel over all tokens. */
function channelMagnitudes(head: HeadValues): Float32Array {
  const {values, tokens, dim} = head;
  const largest = new Float32Array(dim);
  for (let t = 0; t < tokens; t++) {
    for (let d = 0; d < dim; d++) {
      const x = abs(values[t * dim + d]!);
      if (x > largest[d]!) largest[d] = x;
    }
  }
  return largest;
}

function quantizeChannels(head: HeadValues, top: number, round: (x: number) => number): ValueCodes {
  const {values, tokens, dim} = head;
  const largest = channelMagnitudes(head);
  const channelScale = new Float32Array(dim);
  const inverse = new Float32Array(dim);
  for (let d = 0; d < dim; d++) {
    const amax = largest[d]!;
    if (amax < TINY) continue;
    channelScale[d] = amax / top;
    inverse[d] = top / amax;
  }
  const codes = new Float32Array(tokens * dim);
  for (let t = 0; t < tokens; t++) {
    for (let d = 0; d < dim; d++) {
      codes[t * dim + d] = round(f32(values[t * dim + d]! * inverse[d]!));
    }
  }
  return {codes, channelScale, tokenScale: null};
}

function quantizeBlocks(head: HeadValues, top: number, round: (x: number) => number): ValueCodes {
  const {values, tokens, dim} = head;
  const codes = new Float32Array(tokens * dim);
  const tokenScale = new Float32Array(tokens);
  for (let first = 0; first < tokens; first += SCALE_BLOCK) {
    const last = min(tokens, first + SCALE_BLOCK);
    let amax = 0;
    for (let i = first * dim; i < last * dim; i++) amax = max(amax, abs(values[i]!));
    if (amax < TINY) continue;
    const inverse = f32(top / amax);
    tokenScale.fill(amax / top, first, last);
    for (let i = first * dim; i < last * dim; i++) {
      codes[i] = round(f32(values[i]! * inverse));
    }
  }
  return {codes, channelScale: new Float32Array(dim).fill(1), tokenScale};
}

/** fp16 with a power of two per channel that keeps values beyond 65,504 from becoming Infinity; 1 for all others. */
function quantizeFp16(head: HeadValues): ValueCodes {
  const {values, tokens, dim} = head;
  const channelScale = channelMagnitudes(head).map((amax) => {
    let scale = 1;
    while (amax / scale > FP16_MAX) scale *= 2;
    return scale;
  });
  const codes = new Float32Array(tokens * dim);
  for (let t = 0; t < tokens; t++) {
    for (let d = 0; d < dim; d++) {
      codes[t * dim + d] = roundFp16(f32(values[t * dim + d]! / channelScale[d]!));
    }
  }
  return {codes, channelScale, tokenScale: null};
}
