/** NaN and Infinity in q, k and v: docs/numerics.md 2, one rule for every recipe. */
import {PRECISIONS} from '../../src/numerics/recipes';
import {exactAttention, referenceAttention} from '../../src/numerics/reference';
import type {AttentionResult} from '../../src/numerics/reference';
import type {AttentionProblem} from '../../src/problem';
import {maxAbsDifference, normalInputs, problemOf, recipeOf} from './inputs';

const TOKENS = 37;
/** The token with the bad value. */
const TOKEN = 20;
const DIM = 16;
const BAD = [NaN, Infinity, -Infinity];
const CAUSAL = {causal: 'top_left', windowRight: 0} as const;
type Run = (
  problem: AttentionProblem,
  q: Float32Array,
  k: Float32Array,
  v: Float32Array,
) => AttentionResult;

const RUNS: [string, AttentionProblem, Run, number][] = PRECISIONS.map((precision) => {
  const problem = problemOf(recipeOf(precision), {qLen: TOKENS, qkDim: DIM}, CAUSAL);
  const run: Run = (p, q, k, v) => referenceAttention(p, q, k, v, null);
  // Leaving a value out moves the means and scales of its head a little; exact arithmetic has none.
  return [precision, problem, run, precision === 'exact' ? 0 : 1.5];
});
RUNS.push(['float64', RUNS[0]![1], (p, q, k, v) => exactAttention(p, q, k, v, null), 0]);

function row(o: Float64Array, i: number): Float64Array {
  return o.subarray(i * DIM, (i + 1) * DIM);
}

describe.each(RUNS)('%s', (_name, problem, run, slack) => {
  test.each(BAD)('%d in q: that row of o and its lse, nothing else', (bad) => {
    const {q, k, v} = normalInputs(problem, 1);
    const clean = run(problem, q, k, v);
    q[TOKEN * DIM + 3] = bad;
    const {o, lse} = run(problem, q, k, v);
    for (let i = 0; i < TOKENS; i++) {
      if (i === TOKEN) {
        expect(row(o, i).every(Number.isNaN)).toBe(true);
        expect(lse[i]).toBeNaN();
      } else {
        expect(maxAbsDifference(row(o, i), row(clean.o, i))).toBeLessThanOrEqual(slack);
        expect(Number.isFinite(lse[i])).toBe(true);
      }
    }
  });

  test.each(BAD)('%d in k: every row that attends to the token, nothing else', (bad) => {
    const {q, k, v} = normalInputs(problem, 2);
    const clean = run(problem, q, k, v);
    k[TOKEN * DIM + 3] = bad;
    const {o, lse} = run(problem, q, k, v);
    for (let i = 0; i < TOKENS; i++) {
      if (i >= TOKEN) {
        expect(row(o, i).every(Number.isNaN)).toBe(true);
        expect(lse[i]).toBeNaN();
      } else {
        expect(maxAbsDifference(row(o, i), row(clean.o, i))).toBeLessThanOrEqual(slack);
        expect(Number.isFinite(lse[i])).toBe(true);
      }
    }
  });

  test.each(BAD)('%d in v: that channel of every row that attends to the token', (bad) => {
    const {q, k, v} = normalInputs(problem, 3);
    const clean = run(problem, q, k, v);
    v[TOKEN * DIM + 3] = bad;
    const {o, lse} = run(problem, q, k, v);
    for (let i = 0; i < TOKENS; i++) {
      const actual = row(o, i).slice();
      const expected = row(clean.o, i);
      if (i >= TOKEN) {
        expect(actual[3]).toBeNaN();
        actual[3] = expected[3]!;
      }
      expect(maxAbsDifference(actual, expected)).toBeLessThanOrEqual(slack);
    }
    expect(lse).toEqual(clean.lse);
  });

  test('a key whose probability underflows to 0 is still attended to', () => {
    const one = {...problem, qLen: 1, causal: 'none', windowRight: -1} as const;
    const {q, k, v} = normalInputs(one, 4);
    // Token 0 wins by far: scale · q·k differs by thousands.
    for (let d = 0; d < DIM; d++) {
      q[d] = 100;
      for (let j = 0; j < TOKENS; j++) k[j * DIM + d] = j === 0 ? 100 : -100;
    }
    v[7 * DIM + 2] = Infinity;
    const {o} = run(one, q, k, v);
    expect(o[2]).toBeNaN();
    expect(Number.isFinite(o[1])).toBe(true);
  });

  test('a row that attends to nothing stays 0 and -Infinity', () => {
    const windowed = {
      ...problem,
      windowLeft: 0,
      windowRight: 0,
      kvLen: 10,
      causal: 'none',
    } as const;
    const {q, k, v} = normalInputs(windowed, 5);
    q[TOKEN * DIM] = NaN;
    const {o, lse} = run(windowed, q, k, v);
    expect(Array.from(row(o, TOKEN))).toEqual(new Array(DIM).fill(0));
    expect(lse[TOKEN]).toBe(-Infinity);
  });

  test('everything NaN', () => {
    const nothing = new Float32Array(TOKENS * DIM).fill(NaN);
    const {o, lse} = run(problem, nothing, nothing, nothing);
    expect(o.every(Number.isNaN)).toBe(true);
    expect(lse.every(Number.isNaN)).toBe(true);
  });
});
