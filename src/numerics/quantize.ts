/**
 * The quantisers of every recipe, one head at a time: what docs/numerics.md 2 to 5 says, bit for bit.
 * The portable engine runs these; every other engine is tested against them.
 */
import type {ChannelBalance} from './channel_balance.js';
import {readHead} from './operands.js';
import type {HeadSource, HeadValues, QuantizedK, QuantizedQ} from './operands.js';
import {quantizeInt16, quantizePairs, quantizeTokenGroups} from './quantize_integer.js';
import type {Operand, TokenCodes} from './quantize_integer.js';
import {headExponent, quantizeTokensNvfp4} from './quantize_nvfp4.js';
import type {Recipe} from './recipes.js';
import {blockMeans, subtractMeans, tokenMean} from './smoothing.js';

export type {HeadSource, QuantizedK, QuantizedQ, QuantizedV} from './operands.js';
export {channelBalance} from './channel_balance.js';
export {quantizeV} from './quantize_v.js';
export {roundP} from './round_p.js';

const INT8_TOP = 127;
const INT4_TOP = 7;

/** Quantises one head of q as the recipe says; `balance` is that of its key/value head. The source is not changed. */
export function quantizeQ(
  recipe: Recipe,
  source: HeadSource,
  balance: ChannelBalance | null = null,
): QuantizedQ {
  const head = readHead(source);
  const exponent = exponentOf(recipe, head);
  let mean: Float32Array | null = null;
  if (recipe.smoothQ > 0) {
    mean = blockMeans(head, recipe.smoothQ);
    subtractMeans(head, mean, recipe.smoothQ);
  }
  return {
    ...quantizeTokens(recipe, head, 'q', exponent, balance),
    mean,
    meanRows: recipe.smoothQ,
    notFinite: head.notFiniteTokens,
  };
}

/** Quantises one head of k as the recipe says; `balance` is its own (`channelBalance`). The source is not changed. */
export function quantizeK(
  recipe: Recipe,
  source: HeadSource,
  balance: ChannelBalance | null = null,
): QuantizedK {
  const head = readHead(source);
  const exponent = exponentOf(recipe, head);
  let mean: Float32Array | null = null;
  if (recipe.smoothK) {
    mean = tokenMean(head);
    subtractMeans(head, mean, Math.max(1, head.tokens));
  }
  return {
    ...quantizeTokens(recipe, head, 'k', exponent, balance),
    mean,
    smoothed: recipe.smoothQ > 0 ? head.values : null,
    notFinite: head.notFiniteTokens,
  };
}

/** The power of two in front of nvfp4, from the head as given, before smoothing. */
function exponentOf(recipe: Recipe, head: HeadValues): number {
  return recipe.qk === 'nvfp4' && recipe.headExponent ? headExponent(head) : 0;
}

function quantizeTokens(
  recipe: Recipe,
  head: HeadValues,
  operand: Operand,
  exponent: number,
  balance: ChannelBalance | null,
): TokenCodes {
  const group = operand === 'q' ? recipe.qGroup : recipe.kGroup;
  switch (recipe.qk) {
    case 'float32':
      return {codes: head.values, dims: head.dim, scale: new Float32Array(head.tokens).fill(1)};
    case 'int8':
      return quantizeTokenGroups(head, group, INT8_TOP, recipe.rounding);
    case 'int4':
      return quantizeTokenGroups(head, group, INT4_TOP, recipe.rounding);
    case 'int8_pair':
      return quantizePairs(head, operand);
    case 'int16':
      return quantizeInt16(head);
    case 'nvfp4':
      return quantizeTokensNvfp4(
        head,
        exponent,
        recipe.rotate,
        recipe.fourSix,
        balance?.[operand] ?? null,
      );
  }
}
