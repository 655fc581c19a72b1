/** How far one array lies from another: the four numbers by which this package judges an attention. */

export interface AccuracyMetrics {
  /** Cosine of the angle between the two, 1 = same direction. */
  readonly cosine: number;
  /** Sum of |actual - expected| over the sum of |expected|. */
  readonly relativeL1: number;
  /** Root of the mean squared difference. */
  readonly rmse: number;
  /** Largest |actual - expected|. */
  readonly maxAbs: number;
}

/**
 * Compares element by element, in float64. Elements that are the same non-finite value (both NaN, or the same
 * infinity) are left out; where only one is finite, every metric is NaN. Two arrays of zeros are equal (cosine 1).
 * @throws RangeError when the lengths differ.
 */
export function compareArrays(
  actual: ArrayLike<number>,
  expected: ArrayLike<number>,
): AccuracyMetrics {
  const {length} = expected;
  if (actual.length !== length) {
    throw new RangeError(`Cannot compare ${actual.length} values with ${length}.`);
  }
  let product = 0;
  let actualSquares = 0;
  let expectedSquares = 0;
  let difference = 0;
  let magnitude = 0;
  let squares = 0;
  let maxAbs = 0;
  let compared = 0;
  for (let i = 0; i < length; i += 1) {
    const a = actual[i] as number;
    const e = expected[i] as number;
    if (!Number.isFinite(e) && Object.is(a, e)) continue;
    const error = Math.abs(a - e);
    product += a * e;
    actualSquares += a * a;
    expectedSquares += e * e;
    difference += error;
    magnitude += Math.abs(e);
    squares += error * error;
    // Not Math.max alone: a NaN must stay, whatever comes after it.
    if (!(error <= maxAbs)) maxAbs = Number.isNaN(maxAbs) ? NaN : error;
    compared += 1;
  }
  if (!Number.isFinite(squares)) return {cosine: NaN, relativeL1: NaN, rmse: NaN, maxAbs: NaN};
  const norms = Math.sqrt(actualSquares) * Math.sqrt(expectedSquares);
  return {
    cosine: norms > 0 ? product / norms : actualSquares === expectedSquares ? 1 : 0,
    relativeL1: difference === 0 ? 0 : difference / magnitude,
    rmse: compared === 0 ? 0 : Math.sqrt(squares / compared),
    maxAbs,
  };
}
