/** The TypeScript engine: values that are not finite, choices within recipes, memory, determinism, inputs unchanged. */
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine.js';
import {HONOURED_ACCUMULATORS, PRECISIONS, PUBLISHED_FORMS} from '../../src/numerics/recipes.js';
import type {Precision, RecipeChoice} from '../../src/numerics/recipes.js';
import {exactAttention, referenceAttention} from '../../src/numerics/reference.js';
import {CASES, makeInputs, problemOf, relativeL1Bound} from '../cases.js';
import type {AttentionCase} from '../cases.js';
import {
  attend,
  bytesOf,
  largestDifference,
  makeOutputs,
  outputRows,
  recipeOf,
  relativeL1,
  spreadRows,
} from './typescript_checks.js';

const caseNamed = (name: string): AttentionCase => CASES.find((c) => c.name === name)!;

describe.each(PRECISIONS)('values that are not finite, %s', (precision) => {
  const c: AttentionCase = {...caseNamed('top_left, N 129'), heads: 1, kvHeads: 1};
  const problem = problemOf(c, recipeOf(precision));
  const dim = c.headDim;
  const nan = (values: Float32Array, begin: number, count = dim): boolean =>
    values.subarray(begin, begin + count).every((x) => Number.isNaN(x));
  const finite = (values: Float32Array, begin: number, count = dim): boolean =>
    values.subarray(begin, begin + count).every((x) => Number.isFinite(x));

  test.each([NaN, Infinity, -Infinity])('%p in q stays in its row', (bad) => {
    const inputs = makeInputs(c, 21);
    inputs.q[64 * dim + 5] = bad;
    const {o, lse} = attend(problem, inputs);
    expect(nan(o, 64 * dim)).toBe(true);
    expect(lse![64]).toBeNaN();
    expect(finite(o, 0, 64 * dim)).toBe(true);
    expect(finite(o, 65 * dim, 64 * dim)).toBe(true);
    expect(finite(lse!, 0, 64)).toBe(true);
  });

  test.each([NaN, Infinity])('%p in k reaches every row that attends to it', (bad) => {
    const inputs = makeInputs(c, 22);
    inputs.k[50 * dim + 1] = bad;
    const {o, lse} = attend(problem, inputs);
    expect(finite(o, 0, 50 * dim)).toBe(true);
    expect(nan(o, 50 * dim, 79 * dim)).toBe(true);
    expect(nan(lse!, 50, 79)).toBe(true);
  });

  test.each([NaN, -Infinity])('%p in v reaches its channel of those rows', (bad) => {
    const inputs = makeInputs(c, 23);
    inputs.v[50 * dim + 7] = bad;
    const {o, lse} = attend(problem, inputs);
    expect(finite(o, 0, 50 * dim)).toBe(true);
    for (const row of [50, 51, 128]) {
      expect(finite(o, row * dim, 7)).toBe(true);
      expect(o[row * dim + 7]).toBeNaN();
      expect(finite(o, row * dim + 8, dim - 8)).toBe(true);
    }
    expect(finite(lse!, 0, 129)).toBe(true);
  });

  test('rows that attend to nothing stay 0, whatever q holds', () => {
    const empty: AttentionCase = {...c, windowSize: [0, 0], causal: 'none', qLen: 40, kvLen: 20};
    const inputs = makeInputs(empty, 24);
    inputs.q[30 * dim] = NaN;
    const {o, lse} = attend(problemOf(empty, recipeOf(precision)), inputs);
    expect(o.subarray(20 * dim).every((x) => x === 0)).toBe(true);
    expect(lse!.subarray(20).every((x) => x === -Infinity)).toBe(true);
    expect(finite(o, 0, 20 * dim)).toBe(true);
  });

  test('a masked key does not spoil the rows that it is hidden from', () => {
    const masked: AttentionCase = {
      ...caseNamed('boolean mask BHQK'),
      batch: 1,
      heads: 1,
      kvHeads: 1,
    };
    const inputs = makeInputs(masked, 25);
    inputs.k[9 * masked.headDim] = NaN;
    inputs.v[3 * masked.headDim] = Infinity;
    const maskedProblem = problemOf(masked, recipeOf(precision));
    const {o} = attend(maskedProblem, inputs);
    const {q, k, v, mask} = inputs;
    const expected = referenceAttention(maskedProblem, q, k, v, mask).o;
    expect([...o].map(Number.isNaN)).toEqual([...expected].map(Number.isNaN));
    expect([...o].some(Number.isNaN) && !o.every(Number.isNaN)).toBe(true);
  });
});

test('a NaN in an additive mask makes its row NaN', () => {
  const c: AttentionCase = {...caseNamed('additive mask BHQK'), batch: 1, heads: 1, kvHeads: 1};
  for (const precision of PRECISIONS) {
    const inputs = makeInputs(c, 26);
    inputs.mask![4 * c.kvLen + 2] = NaN;
    const {o} = attend(problemOf(c, recipeOf(precision)), inputs);
    expect(o.subarray(4 * c.vDim, 5 * c.vDim).every((x) => Number.isNaN(x))).toBe(true);
    expect(Number.isFinite(o[5 * c.vDim]!)).toBe(true);
  }
});

describe('choices within a recipe', () => {
  const c: AttentionCase = {...caseNamed('N 300'), distribution: 'k_bias'};
  const inputs = makeInputs(c, 31);
  const {q, k, v} = inputs;

  function deviations(precision: Precision, choice: RecipeChoice): {engine: number; own: number} {
    const problem = problemOf(c, recipeOf(precision, choice));
    const rows = spreadRows(problem, 30);
    const o = outputRows(problem, attend(problem, inputs).o, rows);
    const reference = outputRows(problem, referenceAttention(problem, q, k, v, null, rows).o, rows);
    const exact = outputRows(problem, exactAttention(problem, q, k, v, null, rows).o, rows);
    return {engine: relativeL1(o, reference), own: relativeL1(o, exact)};
  }

  const accumulators = PRECISIONS.flatMap((precision) =>
    HONOURED_ACCUMULATORS[precision].map((pvAccumulator) => [precision, pvAccumulator] as const),
  );
  test.each(accumulators)('%s with accumulator %s follows the reference', (precision, name) => {
    const {engine, own} = deviations(precision, {pvAccumulator: name});
    expect(engine).toBeLessThanOrEqual(relativeL1Bound(c, precision) / 2);
    // fp16 sums of 300 products lose about as much as the recipes themselves.
    expect(own).toBeLessThanOrEqual(2 * relativeL1Bound(c, precision));
  });

  test.each(accumulators)(
    '%s with accumulator %s rounds where the reference does',
    (precision, name) => {
      // Within one key tile nothing is rescaled: only sums that lie on the edge of a rounding may differ.
      const small: AttentionCase = {...c, qLen: 20, kvLen: 128};
      const problem = problemOf(small, recipeOf(precision, {pvAccumulator: name}));
      const smallInputs = makeInputs(small, 36);
      const expected = referenceAttention(
        problem,
        smallInputs.q,
        smallInputs.k,
        smallInputs.v,
        null,
      );
      expect(relativeL1(attend(problem, smallInputs).o, expected.o)).toBeLessThan(2e-5);
    },
  );

  test.each(Object.keys(PUBLISHED_FORMS) as Precision[])('%s as published', (precision) => {
    const {engine} = deviations(precision, {variant: 'paper'});
    expect(engine).toBeLessThanOrEqual(relativeL1Bound(c, precision) / 2);
  });

  test.each(['int8_bf16', 'int8_fp8', 'fp4'] as const)('%s without K smoothing', (precision) => {
    const smoothed = deviations(precision, {});
    const plain = deviations(precision, {smoothK: false});
    expect(plain.engine).toBeLessThanOrEqual(plain.own / 2);
    // P · V, which smoothing of K does not touch, has half of the error of the coarser two.
    expect(plain.own).toBeGreaterThan(1.1 * smoothed.own);
  });
});

test('smoothing leaves lse that of the unsmoothed scores', () => {
  const c: AttentionCase = {...caseNamed('N 300'), distribution: 'k_bias'};
  const inputs = makeInputs(c, 32);
  const {q, k, v} = inputs;
  for (const precision of ['int8_bf16', 'int4_fp8', 'fp4'] as const) {
    const problem = problemOf(c, recipeOf(precision));
    const {lse} = attend(problem, inputs);
    const exact = exactAttention(problem, q, k, v, null).lse;
    // 0.5 is the error of 4-bit scores; without the term of the K mean lse is off by several units.
    expect(largestDifference(lse!, exact)).toBeLessThan(0.5);
  }
});

test('inputs are not changed', () => {
  for (const name of ['NHD views', 'k_bias', 'zeros', 'additive mask, empty rows']) {
    const c = caseNamed(name);
    for (const precision of PRECISIONS) {
      const {q, k, v, mask} = makeInputs(c, 33);
      const before = [q, k, v, mask].map((values) => Buffer.from(bytesOf(values)));
      attend(problemOf(c, recipeOf(precision)), {q, k, v, mask});
      expect([q, k, v, mask].every((values, n) => bytesOf(values).equals(before[n]!))).toBe(true);
    }
  }
});

test('the same call gives the same bits', () => {
  const c = caseNamed('one key/value head');
  for (const precision of PRECISIONS) {
    const problem = problemOf(c, recipeOf(precision));
    const first = attend(problem, makeInputs(c, 34));
    const second = attend(problem, makeInputs(c, 34));
    expect(bytesOf(first.o).equals(bytesOf(second.o))).toBe(true);
    expect(bytesOf(first.lse).equals(bytesOf(second.lse))).toBe(true);
  }
});

test('memory grows with N, not with N · N', () => {
  const tokens = 8192;
  const c: AttentionCase = {
    ...caseNamed('window 16 left'),
    headDim: 2,
    vDim: 2,
    qLen: tokens,
    kvLen: tokens,
  };
  const problem = problemOf(c, recipeOf('exact'));
  const buffers = {...makeInputs(c, 35), ...makeOutputs(problem)};
  let allocated = 0;
  const counting = <T extends object>(constructor: T): T =>
    new Proxy(constructor, {
      construct(target, args) {
        const made = Reflect.construct(target as unknown as new () => ArrayBufferView, args);
        allocated += made.byteLength;
        return made;
      },
    });
  const saved = {Float64Array: globalThis.Float64Array, Float32Array: globalThis.Float32Array};
  Object.assign(globalThis, {
    Float64Array: counting(saved.Float64Array),
    Float32Array: counting(saved.Float32Array),
  });
  try {
    typescriptEngine.forward(problem, buffers);
  } finally {
    Object.assign(globalThis, saved);
  }
  // q, k and v of 64 KiB each are copied as float32 and as float64, tiles and scales come on top; scores would take 256 MiB.
  expect(allocated).toBeGreaterThan(6 * 64 * 1024);
  expect(allocated).toBeLessThan(2 ** 20);
});

test('what the engine says of itself', () => {
  expect(typescriptEngine.name).toBe('typescript');
  expect(typescriptEngine.preferred).toBe('exact');
  expect(PRECISIONS.every((precision) => typescriptEngine.supports(precision))).toBe(true);
});
