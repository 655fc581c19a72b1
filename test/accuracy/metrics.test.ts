/** The four numbers, by hand. */
import {compareArrays} from '../../src/accuracy/metrics';

it('compares', () => {
  const {cosine, relativeL1, rmse, maxAbs} = compareArrays([3, 4, 1], [4, 3, 0]);
  expect(cosine).toBeCloseTo(24 / (5 * Math.sqrt(26)), 12);
  expect(relativeL1).toBeCloseTo(3 / 7, 12);
  expect(rmse).toBeCloseTo(1, 12);
  expect(maxAbs).toBe(1);
});

it.each<[number[], number[], object]>([
  [[1, -2], [1, -2], {cosine: 1, relativeL1: 0, rmse: 0, maxAbs: 0}],
  [[0, 0], [0, 0], {cosine: 1, relativeL1: 0, rmse: 0, maxAbs: 0}],
  [[], [], {cosine: 1, relativeL1: 0, rmse: 0, maxAbs: 0}],
  [[1, 1], [0, 0], {cosine: 0, relativeL1: Infinity, rmse: 1, maxAbs: 1}],
  [[0, 0], [2, 0], {cosine: 0, relativeL1: 1, rmse: Math.sqrt(2), maxAbs: 2}],
  [[1, NaN, -Infinity], [1, NaN, -Infinity], {cosine: 1, relativeL1: 0, rmse: 0, maxAbs: 0}],
  [[1, NaN, 3], [1, 2, 3], {cosine: NaN, relativeL1: NaN, rmse: NaN, maxAbs: NaN}],
  [[1, 2, 3], [1, Infinity, 3], {cosine: NaN, relativeL1: NaN, rmse: NaN, maxAbs: NaN}],
  [[Infinity], [-Infinity], {cosine: NaN, relativeL1: NaN, rmse: NaN, maxAbs: NaN}],
])('%p against %p', (actual, expected, metrics) => {
  const compared = compareArrays(actual, expected);
  expect({...compared, cosine: Number(compared.cosine.toFixed(12))}).toEqual(metrics);
});

it('refuses arrays of different lengths', () => {
  expect(() => compareArrays([1], [1, 2])).toThrow(RangeError);
});
