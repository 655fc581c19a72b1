/** The accumulators of P·V: docs/numerics.md 5. */
import type {QuantizedV} from '../../src/numerics/quantize';
import {accumulatePv} from '../../src/numerics/reference_accumulators';
import type {PvAccumulator, Precision} from '../../src/numerics/recipes';
import {recipeOf, uniform} from './inputs';

function values(codes: ArrayLike<number>, dim: number): QuantizedV {
  return {
    codes: Float32Array.from(codes),
    channelScale: new Float32Array(dim).fill(1),
    tokenScale: null,
    mean: null,
    notFinite: null,
  };
}

/** Keeps `bits` bits after the leading one: to nearest even, or cut towards zero. */
function keepBits(x: number, bits: number, cut: boolean): number {
  if (x === 0) return 0;
  const unit = 2 ** (Math.floor(Math.log2(Math.abs(x))) - bits);
  const units = x / unit;
  if (cut) return Math.trunc(units) * unit;
  const floor = Math.floor(units);
  const rest = units - floor;
  return (rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor) * unit;
}

interface Model {
  precision: Precision;
  pvAccumulator: PvAccumulator;
  step: number;
  span: number;
  bits: number;
  cut: boolean;
}

const MODELS: Model[] = [
  {precision: 'int8_fp16', pvAccumulator: 'fp16', step: 16, span: 1e9, bits: 10, cut: false},
  {precision: 'int8_fp16', pvAccumulator: 'fp16+fp32', step: 16, span: 64, bits: 10, cut: false},
  {precision: 'int8_fp8', pvAccumulator: 'fp32+fp16', step: 32, span: 64, bits: 10, cut: false},
  {precision: 'int4_fp8', pvAccumulator: 'fp32+fp16', step: 32, span: 64, bits: 10, cut: false},
  {precision: 'int8_fp8', pvAccumulator: 'fp32', step: 32, span: 1e9, bits: 13, cut: true},
  {precision: 'int4_fp8', pvAccumulator: 'fp32', step: 32, span: 1e9, bits: 13, cut: true},
];

describe.each(MODELS)('$precision $pvAccumulator', (model) => {
  const recipe = recipeOf(model.precision, {pvAccumulator: model.pvAccumulator});

  test.each([1, 15, 16, 17, 64, 65, 127, 129, 200])('%i keys', (count) => {
    const next = uniform(count);
    const dim = 3;
    const p = Float64Array.from({length: count}, () => Math.round(next() * 64) / 64);
    const codes = Array.from({length: count * dim}, () => Math.round((next() - 0.4) * 256) / 128);
    const actual = accumulatePv(recipe, p, values(codes, dim), dim);
    let lossless = true;
    for (let d = 0; d < dim; d++) {
      let total = 0;
      let accumulator = 0;
      let all = 0;
      for (let j = 0; j < count; j++) {
        accumulator += p[j]! * codes[j * dim + d]!;
        all += p[j]! * codes[j * dim + d]!;
        const end = j + 1;
        if (end % model.step === 0 || end === count) {
          accumulator = keepBits(accumulator, model.bits, model.cut);
        }
        if (end % model.span === 0 || end === count) {
          total += accumulator;
          accumulator = 0;
        }
      }
      expect(actual[d]).toBeCloseTo(total, 12);
      if (total !== all) lossless = false;
    }
    // The model does round: with this many keys something is lost.
    if (count >= 64) expect(lossless).toBe(false);
  });
});

test.each([
  ['int8_fp16', 'fp32'],
  ['int8_bf16', 'fp32'],
  ['int8_fp8', 'fp32+fp32'],
  ['fp4', 'fp32+fp32'],
] as const)('%s %s loses nothing', (precision, pvAccumulator) => {
  const p = Float64Array.from({length: 100}, (_, j) => 1 + j / 4096);
  const codes = Array.from({length: 100}, (_, j) => 1 - j / 4096);
  const expected = p.reduce((sum, x, j) => sum + x * codes[j]!, 0);
  const recipe = recipeOf(precision, {pvAccumulator});
  expect(accumulatePv(recipe, p, values(codes, 1), 1)[0]).toBe(expected);
});

test('448 · 2.25 · 64 keys fits in the fp16 accumulator of SageAttention2++', () => {
  const recipe = recipeOf('int8_fp8', {pvAccumulator: 'fp32+fp16'});
  const p = new Float64Array(128).fill(448);
  const sum = accumulatePv(recipe, p, values(new Float32Array(128).fill(2.25), 1), 1);
  expect(sum[0]).toBe(128 * 448 * 2.25);
});

test('scales per token multiply before the sum', () => {
  const v = {...values([1, 2, 3], 1), tokenScale: Float32Array.of(1, 10, 100)};
  expect(accumulatePv(recipeOf('int8'), Float64Array.of(1, 1, 2), v, 1)[0]).toBe(621);
});

test('no keys', () => {
  expect(Array.from(accumulatePv(recipeOf('int8'), new Float64Array(0), values([], 2), 2))).toEqual(
    [0, 0],
  );
});
