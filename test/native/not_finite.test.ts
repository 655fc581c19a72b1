/** NaN and Infinity through the native engine: the same elements of o and lse are NaN as the specification says, all others equal. */
import {PRECISIONS} from '../../src/numerics/recipes.js';
import type {Precision, Recipe} from '../../src/numerics/recipes.js';
import {isRefusal, resolveRecipe} from '../../src/numerics/recipes.js';
import {referenceAttention} from '../../src/numerics/reference.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {CASES, makeInputs, problemOf, RELATIVE_L1} from '../cases.js';
import type {AttentionCase, CaseInputs} from '../cases.js';

// Under jest every use of a global is a slow look-up: module constants are not.
const {isNaN} = Number;
const {abs} = Math;

const {addon} = loadAddon();
if (addon === null) throw new Error('no native addon');
const isas = addon.capabilities().isa.available;

const named = (name: string): AttentionCase => {
  const found = CASES.find((c) => c.name === name);
  if (found === undefined) throw new Error(name);
  return {...found, wantLse: true};
};

/** Puts a value at (token, channel) of the first head. */
function poison(data: Float32Array, at: number, value: number): void {
  data[at] = value;
}

const SCENES: readonly [string, AttentionCase, (c: AttentionCase, inputs: CaseInputs) => void][] = [
  ['q, one row', named('N 129'), (c, {q}) => poison(q, 5 * c.headDim + 3, NaN)],
  ['q, Infinity', named('top_left, N 129'), (c, {q}) => poison(q, 77 * c.headDim, Infinity)],
  ['k, causal', named('top_left, N 129'), (c, {k}) => poison(k, 40 * c.headDim + 1, NaN)],
  ['k, -Infinity', named('window 5 left, 3 right'), (c, {k}) => poison(k, 150 * c.headDim, -Infinity)],
  ['k and v, boolean mask', named('boolean mask, empty rows'), (c, {k, v}) => {
    poison(k, 100 * c.headDim, Infinity);
    poison(v, 20 * c.vDim + 2, NaN);
  }],
  ['v, additive mask', named('additive mask, empty rows'), (c, {v}) => poison(v, 60 * c.vDim + 5, Infinity)],
  ['additive mask', named('additive mask, empty rows'), (_, {mask}) => {
    // A row in the middle, one that attends to nothing else, the last one.
    poison(mask as Float32Array, 7 * 140 + 90, NaN);
    poison(mask as Float32Array, 10 * 140 + 3, NaN);
    poison(mask as Float32Array, 139 * 140 + 139, Infinity);
  }],
  ['additive mask, causal', named('additive mask, causal, grouped heads'), (_, {mask}) => {
    poison(mask as Float32Array, 30 * 66 + 30, Infinity);
    poison(mask as Float32Array, 40 * 66 + 41, NaN); // hidden
    poison(mask as Float32Array, (66 + 50) * 66, NaN);
  }],
  ['v, causal', named('top_left, N 300'), (c, {v}) => poison(v, 200 * c.vDim + 7, -Infinity)],
  ['q row that attends to nothing', named('window that some rows miss'), (c, {q}) => {
    poison(q, 149 * c.headDim, NaN);
    poison(q, 3 * c.headDim, NaN);
  }],
];

function recipeOf(precision: Precision): Recipe {
  const recipe = resolveRecipe(precision, {});
  if (isRefusal(recipe)) throw new Error(precision);
  return recipe;
}

const answers = new Map<string, ReturnType<typeof referenceAttention>>();

describe.each(isas)('%s', (isa) => {
  test.each(SCENES)('%s', (name, c, spoil) => {
    addon.configure({isa, threads: 1});
    const failures: string[] = [];
    for (const precision of PRECISIONS) {
      const problem = problemOf(c, recipeOf(precision));
      const inputs = makeInputs(c, 5);
      spoil(c, inputs);
      const key = `${name} ${precision}`;
      const expected =
        answers.get(key) ?? referenceAttention(problem, inputs.q, inputs.k, inputs.v, inputs.mask);
      answers.set(key, expected);
      const o = new Float32Array(expected.o.length);
      const lse = new Float32Array(expected.lse.length);
      const words = encodeProblem(problem, new Float64Array(PROBLEM_WORDS));
      addon.forward(words, inputs.q, inputs.k, inputs.v, inputs.mask, o, lse);
      let marked = 0;
      let error = 0;
      let size = 0;
      expected.o.forEach((wanted, i) => {
        const got = o[i]!;
        if (isNaN(wanted)) marked++;
        if (isNaN(wanted) !== isNaN(got)) failures.push(`${precision}: o[${i}] is ${got}, not ${wanted}`);
        if (isNaN(wanted) || isNaN(got)) return;
        error += abs(wanted - got);
        size += abs(wanted);
      });
      expected.lse.forEach((wanted, i) => {
        if (isNaN(wanted) !== isNaN(lse[i]!) || (wanted === -Infinity) !== (lse[i] === -Infinity)) {
          failures.push(`${precision}: lse[${i}] is ${lse[i]}, not ${wanted}`);
        }
      });
      expect(marked).toBeGreaterThan(0);
      const bound = precision === 'exact' ? 2e-6 : 2 * RELATIVE_L1[precision];
      if (!(error <= bound * size)) failures.push(`${precision}: other elements differ by ${error / size}`);
    }
    expect(failures.slice(0, 5)).toEqual([]);
  });
});

afterAll(() => addon.configure({isa: null, threads: null}));
