/**
 * The native forward pass against the specification, on every instruction set that this machine runs: quantised operands
 * bit for bit, outputs up to the order of sums and the rounding of P against a running maximum.
 */
import {compareArrays} from '../../src/accuracy/metrics.js';
import {channelBalance, quantizeK, quantizeQ, quantizeV} from '../../src/numerics/quantize.js';
import type {HeadSource} from '../../src/numerics/quantize.js';
import {isRefusal, PRECISIONS, resolveRecipe} from '../../src/numerics/recipes.js';
import type {Precision, Recipe, RecipeChoice} from '../../src/numerics/recipes.js';
import {exactAttention, referenceAttention} from '../../src/numerics/reference.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import type {AttentionProblem, TokenStrides} from '../../src/problem.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import type {NativeAddon} from '../../src/runtime/native_addon.js';
import {CASES, casesTagged, makeInputs, problemOf, RELATIVE_L1} from '../cases.js';
import type {AttentionCase, CaseInputs} from '../cases.js';

const {addon: loaded, attempts} = loadAddon();
if (loaded === null) throw new Error(`no native addon: ${JSON.stringify(attempts)}`);
const addon: NativeAddon = loaded;
const isas = addon.capabilities().isa.available;

function recipeOf(precision: Precision, choice: RecipeChoice = {}): Recipe {
  const recipe = resolveRecipe(precision, choice);
  if (isRefusal(recipe)) throw new Error(JSON.stringify(recipe));
  return recipe;
}

/** Every recipe, and the forms that take other paths through the engine. */
const FORMS: readonly [name: string, recipe: Recipe][] = [
  ...PRECISIONS.map((precision): [string, Recipe] => [precision, recipeOf(precision)]),
  ...(['int8_fp16', 'int8_fp8', 'int8', 'int4_fp8', 'fp4'] as const).map(
    (precision): [string, Recipe] => [`${precision}, paper`, recipeOf(precision, {variant: 'paper'})],
  ),
  ['int8, smoothV, per_block', recipeOf('int8', {smoothV: true, granularity: 'per_block'})],
  ['int8_bf16, smoothQ', recipeOf('int8_bf16', {smoothQ: true})],
  ['int8_bf16, smoothV', recipeOf('int8_bf16', {smoothV: true})],
  ['int8_int16, no smoothing', recipeOf('int8_int16', {smoothK: false})],
  ['int16, smoothV', recipeOf('int16', {smoothV: true})],
  ['int8_fp16, fp16, per_warp', recipeOf('int8_fp16', {pvAccumulator: 'fp16', granularity: 'per_warp'})],
  ['int8_fp8, fp32', recipeOf('int8_fp8', {pvAccumulator: 'fp32'})],
  ['int8_fp8, fp32+fp16', recipeOf('int8_fp8', {pvAccumulator: 'fp32+fp16'})],
];

function run(problem: AttentionProblem, {q, k, v, mask}: CaseInputs): {o: Float32Array; lse: Float32Array} {
  const rows = problem.batch * problem.qHeads * problem.qLen;
  const o = new Float32Array(rows * problem.vDim).fill(NaN);
  const lse = new Float32Array(rows).fill(NaN);
  addon.forward(encodeProblem(problem, new Float64Array(PROBLEM_WORDS)), q, k, v, mask, o, lse);
  return {o, lse};
}

function relativeL1(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  return compareArrays(actual, expected).relativeL1;
}

const FAST = casesTagged('fast');
/** The ten recipes run every case, further forms of them every fourth: another path, the same tile loop. */
const casesFor = (form: number): readonly AttentionCase[] =>
  form < PRECISIONS.length ? FAST : FAST.filter((_, at) => at % 4 === form % 4);

describe.each(FORMS)('%s', (name, recipe) => {
  const compared = casesFor(FORMS.findIndex((form) => form[0] === name));
  const reference = new Map<string, {o: Float64Array; lse: Float64Array}>();
  test.each(isas)('%s: outputs', (isa) => {
    addon.configure({isa, threads: 1});
    const failures: string[] = [];
    for (const c of compared) {
      const problem = problemOf({...c, wantLse: true}, recipe);
      const inputs = makeInputs(c, 1);
      let expected = reference.get(c.name);
      if (expected === undefined) {
        expected = referenceAttention(problem, inputs.q, inputs.k, inputs.v, inputs.mask);
        reference.set(c.name, expected);
      }
      const actual = run(problem, inputs);
      const bound = recipe.precision === 'exact' ? 2e-6 : RELATIVE_L1[recipe.precision] / 2;
      const error = relativeL1(actual.o, expected.o);
      if (!(error <= bound)) failures.push(`${c.name}: o differs by ${error}, allowed ${bound}`);
      if (recipe.precision === 'exact') {
        const {maxAbs} = compareArrays(actual.o, expected.o);
        // Outliers make outputs of a few tens: their last float32 digits count from there.
        const magnitude = expected.o.reduce((most, x) => Math.max(most, Math.abs(x)), 1);
        if (!(maxAbs <= 1e-5 * magnitude)) failures.push(`${c.name}: o differs by ${maxAbs}`);
      }
      const lse = compareArrays(actual.lse, expected.lse).maxAbs;
      if (!(lse <= 2e-4)) failures.push(`${c.name}: lse differs by ${lse}`);
    }
    expect(failures).toEqual([]);
  });
});

/** Codes and scales of all heads as the specification has them, in the layout of `quantize`. */
function specified(problem: AttentionProblem, {q, k, v}: CaseInputs) {
  const heads = (
    data: Float32Array,
    strides: TokenStrides,
    count: number,
    tokens: number,
    dim: number,
  ): HeadSource[] =>
    Array.from({length: problem.batch * count}, (_, at) => ({
      data,
      offset: Math.floor(at / count) * strides.batch + (at % count) * strides.head,
      tokenStride: strides.token,
      tokens,
      dim,
    }));
  const {recipe, qHeads, kvHeads, qLen, kvLen, qkDim, vDim} = problem;
  const concat = (parts: Float32Array[]): number[] => parts.flatMap((part) => [...part]);
  const qSources = heads(q, problem.q, qHeads, qLen, qkDim);
  const kSources = heads(k, problem.k, kvHeads, kvLen, qkDim);
  const group = qHeads / kvHeads;
  const balances = kSources.map((head, at) =>
    channelBalance(recipe, head, qSources.slice(at * group, (at + 1) * group)),
  );
  const qs = qSources.map((head, at) =>
    quantizeQ(recipe, head, balances[Math.floor(at / group)] ?? null),
  );
  const ks = kSources.map((head, at) => quantizeK(recipe, head, balances[at]!));
  const vs = heads(v, problem.v, kvHeads, kvLen, vDim).map((head) => quantizeV(recipe, head));
  return {
    qCodes: concat(qs.map((x) => x.codes)),
    qScale: concat(qs.map((x) => x.scale)),
    kCodes: concat(ks.map((x) => x.codes)),
    kScale: concat(ks.map((x) => x.scale)),
    vCodes: concat(vs.map((x) => x.codes)),
    vScale: concat(vs.map((x) => x.channelScale)),
    dims: qs[0]?.dims ?? 0,
  };
}

function firstDifference(name: string, actual: Float32Array, expected: number[]): string | null {
  if (actual.length !== expected.length) return `${name}: ${actual.length} values, ${expected.length} specified`;
  for (let i = 0; i < expected.length; i++) {
    // -0 and 0 are one code.
    if (actual[i] !== expected[i]) return `${name}[${i}] is ${actual[i]}, specified ${expected[i]}`;
  }
  return null;
}

const QUANTISED = CASES.filter((c) =>
  [
    'N 1',
    'N 129',
    'head_dim 3',
    'head_dim 31',
    'head_dim 80',
    'head_dim 192',
    'grouped heads, NHD, causal',
    'v wider than k',
    'k_bias',
    'outlier_tokens',
    'outlier_channels',
    'zeros',
  ].includes(c.name),
);

/** Makes some channels wide in q, others in k, so that balanced recipes move powers of two. */
function widenChannels({q, k}: CaseInputs, dim: number): void {
  for (let i = 0; i < q.length; i++) if ((i % dim) % 3 === 0) q[i]! *= 23;
  for (let i = 0; i < k.length; i++) if ((i % dim) % 5 === 1) k[i]! *= 9;
}

/** Rows of q whose largest values lie on both sides of 2^-110, below which a row is zeros. */
function shrinkRows({q}: CaseInputs, dim: number): void {
  for (let i = 0; i < q.length; i++) q[i]! *= 2 ** (-100 - (Math.floor(i / dim) % 23));
}

describe.each(FORMS.filter(([, recipe]) => recipe.precision !== 'exact'))('%s', (_name, recipe) => {
  test.each(isas)('%s: codes and scales', (isa) => {
    addon.configure({isa, threads: 1});
    const failures: string[] = [];
    type Change = (inputs: CaseInputs, dim: number) => void;
    const cases: {c: AttentionCase; change?: Change}[] = QUANTISED.map((c) => ({c}));
    if (recipe.qk === 'nvfp4') cases.push(...QUANTISED.map((c) => ({c, change: widenChannels})));
    cases.push({c: CASES.find(({name}) => name === 'N 129')!, change: shrinkRows});
    for (const {c, change} of cases) {
      const problem = problemOf({...c, causal: 'none'}, recipe);
      const inputs = makeInputs(c, 2);
      change?.(inputs, problem.qkDim);
      const wanted = specified(problem, inputs);
      const got = {
        qCodes: new Float32Array(wanted.qCodes.length),
        qScale: new Float32Array(wanted.qScale.length),
        kCodes: new Float32Array(wanted.kCodes.length),
        kScale: new Float32Array(wanted.kScale.length),
        vCodes: new Float32Array(wanted.vCodes.length),
        vScale: new Float32Array(wanted.vScale.length),
      };
      const o = new Float32Array(problem.batch * problem.qHeads * problem.qLen * problem.vDim);
      const lse = new Float32Array(problem.batch * problem.qHeads * problem.qLen);
      const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
      const dims = addon.quantize(
        words,
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.mask,
        o,
        problem.wantLse ? lse : null,
        got.qCodes,
        got.qScale,
        got.kCodes,
        got.kScale,
        got.vCodes,
        got.vScale,
      );
      if (dims !== wanted.dims) failures.push(`${c.name}: dims ${dims}, specified ${wanted.dims}`);
      for (const name of ['qCodes', 'qScale', 'kCodes', 'kScale', 'vCodes', 'vScale'] as const) {
        // A scale per 64 tokens is folded into the codes of v: there the product is compared by the outputs.
        if (recipe.vScale === 'block64' && name.startsWith('v')) continue;
        const difference = firstDifference(name, got[name], wanted[name]);
        if (difference !== null) failures.push(`${c.name}: ${difference}`);
      }
    }
    expect(failures).toEqual([]);
  });
});

describe('accuracy against float64', () => {
  const specification = new Map<string, Float64Array>();
  const cases = casesTagged('accuracy').filter((c) => c.kvLen <= 1000);
  const expected = new Map(
    cases.map((c) => {
      const {q, k, v} = makeInputs(c, 3);
      return [c.name, exactAttention(problemOf(c, recipeOf('exact')), q, k, v, null).o];
    }),
  );
  test.each(isas)('%s: every recipe within its bound, K bias within 1.2 times', (isa) => {
    addon.configure({isa, threads: 1});
    const failures: string[] = [];
    for (const precision of PRECISIONS) {
      for (const c of cases) {
        const error = relativeL1(
          run(problemOf(c, recipeOf(precision)), makeInputs(c, 3)).o,
          expected.get(c.name)!,
        );
        const bound = RELATIVE_L1[precision] * (c.distribution === 'normal' ? 1 : 1.2);
        if (!(error <= bound)) failures.push(`${precision}, ${c.name}: ${error}, allowed ${bound}`);
      }
    }
    expect(failures).toEqual([]);
  });

  /** Rows that the float64 specification computes here: enough to average over, and seconds instead of minutes. */
  const sampled = Array.from({length: 40}, (_, n) => n * 25);

  test.each(isas)('%s: own error at most 1.05 times the specification\'s', (isa) => {
    addon.configure({isa, threads: 1});
    const failures: string[] = [];
    for (const precision of PRECISIONS.filter((name) => name !== 'exact')) {
      for (const c of cases) {
        const problem = problemOf(c, recipeOf(precision));
        const {q, k, v} = makeInputs(c, 3);
        const key = `${precision} ${c.name}`;
        const wanted = specification.get(key) ?? referenceAttention(problem, q, k, v, null, sampled).o;
        specification.set(key, wanted);
        const rows = (x: Float32Array | Float64Array): number[] =>
          Array.from({length: c.heads}, (_, h) =>
            sampled.map((i) => [...x.subarray(h * problem.o.head + i * c.vDim).subarray(0, c.vDim)]),
          ).flat(2);
        const truth = rows(expected.get(c.name)!);
        const actual = rows(run(problem, makeInputs(c, 3)).o);
        const own = relativeL1(actual, truth);
        const theirs = relativeL1(rows(wanted), truth);
        const apart = relativeL1(actual, rows(wanted));
        if (!(own <= 1.05 * theirs)) failures.push(`${key}: own error ${own / theirs} times`);
        if (!(apart <= RELATIVE_L1[precision] / 2)) failures.push(`${key}: differs by ${apart}`);
      }
    }
    expect(failures).toEqual([]);
  });

  test('without smoothing, K bias costs several times as much', () => {
    const c = cases.find(({distribution}) => distribution === 'k_bias')!;
    const inputs = makeInputs(c, 3);
    for (const precision of ['int8_int16', 'int8_bf16', 'int8_fp16', 'int8', 'fp4'] as const) {
      const [on, off] = [true, false].map((smoothK) =>
        relativeL1(run(problemOf(c, recipeOf(precision, {smoothK})), inputs).o, expected.get(c.name)!),
      );
      // Balanced channels move part of the bias to q.
      expect(off).toBeGreaterThan((precision === 'fp4' ? 1.3 : 1.5) * on!);
    }
  });
});

describe('threads', () => {
  test('two threads give the bits of one', () => {
    const c = CASES.find(({name}) => name === 'grouped heads, NHD, causal')!;
    for (const recipe of [recipeOf('int8_int16'), recipeOf('fp4'), recipeOf('exact')]) {
      const inputs = makeInputs(c, 4);
      addon.configure({isa: null, threads: 1});
      const one = run(problemOf({...c, qLen: 300, kvLen: 300}, recipe), makeInputs({...c, qLen: 300, kvLen: 300}, 4));
      addon.configure({isa: null, threads: 2});
      const two = run(problemOf({...c, qLen: 300, kvLen: 300}, recipe), makeInputs({...c, qLen: 300, kvLen: 300}, 4));
      expect(relativeL1(two.o, one.o)).toBeLessThanOrEqual(1e-6);
      const again = run(problemOf({...c, qLen: 300, kvLen: 300}, recipe), makeInputs({...c, qLen: 300, kvLen: 300}, 4));
      expect(again.o).toEqual(two.o);
      expect(inputs.q.length).toBeGreaterThan(0);
    }
  });
});

afterAll(() => {
  addon.configure({isa: null, threads: null});
});
