/** How far each recipe may lie from float64: the bounds that the project's own tests hold. */
import type {Precision} from '../numerics/recipes.js';
import type {Distribution} from './distributions.js';

/** What a result must reach; a field that is left out is not checked. */
export interface AttentionTolerance {
  /** Smallest cosine. */
  readonly cosine?: number;
  /** Largest sum of |error| over sum of |expected|. */
  readonly relativeL1?: number;
}

/** Largest relative L1 on N(0,1), head_dim 64 and 128, 1,000 tokens. */
export const RELATIVE_L1_BOUNDS: Readonly<Record<Precision, number>> = {
  exact: 2e-6,
  int16: 1e-3,
  int8_int16: 0.015,
  int8_bf16: 0.012,
  int8_fp16: 0.015,
  int8_fp8: 0.045,
  int8: 0.02,
  int4_fp8: 0.22,
  fp4: 0.2,
  fp4_fp8: 0.16,
};

/**
 * What a distribution may cost beyond the bounds for N(0,1). K smoothing leaves a fifth of a K bias' cost; scores four times
 * as large carry four times the error, of which a softmax near one key forgives half; a token five times larger than the
 * rest takes five times the step of what shares its scale (int8 and int16 V per channel); over 8,192 tokens int8 P loses
 * a little more of its small values than over 1,000.
 */
export const DISTRIBUTION_FACTORS: Readonly<Record<Distribution, number>> = {
  normal: 1,
  long: 1.1,
  k_bias: 1.2,
  qv_bias: 1,
  v_bias: 1,
  outlier_channels: 1.5,
  outlier_tokens: 5,
  peaky: 2,
  zeros: 1,
};

/** Few outputs scatter around the mean that the bounds were measured for: fewer tokens than this get the slack. */
const MANY_TOKENS = 1000;
const SMALL_CASE_SLACK = 1.25;

/**
 * The bound for a recipe's default form on a distribution.
 * @param tokens The smaller of qLen and kvLen. Default: 1,000.
 */
export function toleranceOf(
  precision: Precision,
  distribution: Distribution,
  tokens = MANY_TOKENS,
): AttentionTolerance & {readonly relativeL1: number} {
  const slack = tokens < MANY_TOKENS ? SMALL_CASE_SLACK : 1;
  return {relativeL1: RELATIVE_L1_BOUNDS[precision] * DISTRIBUTION_FACTORS[distribution] * slack};
}
