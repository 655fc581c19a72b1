/** The cost model of calls through the GPU: arithmetic, thresholds, and measuring against engines of known speed. */
import {
  copiedBytes,
  LEAST_OPERATIONS,
  LEAST_OPERATIONS_PER_BYTE,
  mayGain,
  measureCudaCosts,
  operationsOf,
  predict,
  type CallSizes,
  type CudaCosts,
} from '../../src/engines/cuda_costs';
import type {AttentionProblem} from '../../src/problem';

const square = (heads: number, tokens: number, dim = 64): CallSizes => ({
  batch: 1,
  qHeads: heads,
  kvHeads: heads,
  qLen: tokens,
  kvLen: tokens,
  qkDim: dim,
  vDim: dim,
});

it('counts operations and bytes', () => {
  const sizes = {batch: 2, qHeads: 6, kvHeads: 3, qLen: 10, kvLen: 20, qkDim: 8, vDim: 4};
  expect(operationsOf(sizes, false)).toBe(2 * 6 * 10 * 20 * 2 * (8 + 4));
  expect(operationsOf(sizes, true)).toBe(operationsOf(sizes, false) / 2);
  // q 10·6·8, k 20·3·8, v 20·3·4, o 10·6·4 elements a batch
  expect(copiedBytes(sizes)).toBe(2 * 4 * (480 + 480 + 240 + 240));
});

it.each<[string, CallSizes, boolean, boolean]>([
  ['a large call', square(16, 4096), false, true],
  ['a small call', square(8, 512), false, false],
  ['half of a call that is just large enough', square(16, 1024), true, false],
  ['decoding', {...square(32, 131072, 128), qLen: 4}, false, false],
  ['nothing', square(16, 0), false, false],
])('asks for %s', (_, sizes, causal, worth) => {
  expect(mayGain(sizes, causal)).toBe(worth);
  const operations = operationsOf(sizes, causal);
  const large = operations >= LEAST_OPERATIONS;
  expect(worth).toBe(large && operations / copiedBytes(sizes) >= LEAST_OPERATIONS_PER_BYTE);
});

const costs: CudaCosts = {
  launchMs: 0.1,
  copyMsPerByte: 1e-7,
  cudaRate: (precision) => (precision === 'exact' ? 1e11 : 4e11),
  nativeRate: (precision) => (precision === 'exact' ? 1e9 : 4e9),
};

it('predicts the slower of copies and kernels, and a launch', () => {
  const bound = predict(costs, square(1, 1024), false, 'exact', 'int8_bf16');
  expect(bound.cudaMs).toBeCloseTo(0.1 + 4 * 65536 * 4 * 1e-7);
  expect(bound.nativeMs).toBeCloseTo(268435456 / 4e9);
  const long = predict(costs, square(1, 131072), false, 'exact', 'exact');
  expect(long.cudaMs).toBeCloseTo(0.1 + (4 * 131072 ** 2 * 64) / 1e11);
  expect(long.nativeMs).toBeCloseTo((4 * 131072 ** 2 * 64) / 1e9);
  const causal = predict(costs, square(1, 2 ** 20), true, 'int8_fp8', 'exact');
  expect(causal.cudaMs).toBeCloseTo(0.1 + (2 * 2 ** 40 * 64) / 4e11);
});

describe('measured on engines whose clock is arithmetic', () => {
  let clock = 0;
  const calls: string[] = [];
  let first = true;
  const cuda = {
    forward(problem: AttentionProblem) {
      calls.push(`cuda ${problem.recipe.precision}`);
      // The first call of a process starts CUDA.
      clock += 0.05 + copiedBytes(problem) * 2e-8 + (first ? 500 : 0);
      first = false;
    },
  };
  const native = {
    forward(problem: AttentionProblem) {
      calls.push(`native ${problem.recipe.precision}`);
      clock += operationsOf(problem, false) / (problem.recipe.precision === 'exact' ? 2e8 : 1e9);
    },
  };
  const addon = {
    timeCudaForward(words: Float64Array) {
      calls.push('events');
      return [3, 1, 2].map((factor) => (factor * 4 * 16 * 1024 ** 2 * words[6]!) / 1e11);
    },
  };
  const measured = measureCudaCosts(addon, cuda, native, () => clock);

  it('launch and copies come at once, without what only first calls cost', () => {
    expect(measured.launchMs).toBeLessThan(0.06);
    expect(measured.copyMsPerByte).toBeGreaterThan(1.9e-8);
    expect(measured.copyMsPerByte).toBeLessThan(2e-8);
    expect(calls.every((call) => call === 'cuda exact')).toBe(true);
  });

  it('rates come when asked for, once each', () => {
    calls.length = 0;
    expect(measured.nativeRate('exact')).toBeCloseTo(2e8, -2);
    expect(measured.nativeRate('int8_bf16')).toBeCloseTo(1e9, -2);
    expect(measured.cudaRate('exact')).toBeCloseTo(1e11, -4);
    const count = calls.length;
    expect(count).toBe(3 + 3 + 1);
    measured.nativeRate('exact');
    measured.cudaRate('exact');
    expect(calls).toHaveLength(count);
  });
});
