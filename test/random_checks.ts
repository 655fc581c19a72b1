/**
 * One random problem through one engine, against float64: outputs, lse, gradients, which of them are NaN, and that gaps
 * between rows are neither read nor written. Each check returns what failed, in words.
 */
import type {BackwardBuffers} from '../src/engines/engine.js';
import {referenceAttention, referenceGradients} from '../src/numerics/reference.js';
import type {AttentionResult} from '../src/numerics/reference.js';
import type {Recipe} from '../src/numerics/recipes.js';
import type {AttentionProblem, TokenStrides} from '../src/problem.js';
import {Random} from './case_inputs.js';
import {recipeOf, UNWRITTEN} from './engines/typescript_checks.js';
import {forEachElement} from './random_problems.js';
import type {RandomProblem} from './random_problems.js';

const {abs, max, sqrt} = Math;
const {isNaN} = Number;

/** Largest error of exact gradients over the largest of them. */
const GRADIENT_BOUND = 2e-5;
/** float32 carries 24 bits of a score, and of lse: what p = exp(score - lse) may be off, for scores of 1. */
const OF_SCORES = 2e-6;

/** How far an engine may be from float64. */
export interface Allowance {
  /** Largest error of an output over the largest value of v. */
  readonly o: number;
  /** Largest error of lse. */
  readonly lse: number;
  /** What an engine loses of a score, times what float32 does: in lse, and in o. 1 by default. */
  readonly ofScores?: {readonly lse: number; readonly o: number};
  /**
   * For formats of P whose neighbours lie far apart: where rows whose P rounds to the other neighbour may be, over the
   * largest value of v, instead of `o`; they may be a row of 32 (and one in any problem).
   */
  readonly otherNeighbour?: number;
}

/** The forward pass of an engine: writes o, and lse where the problem wants it. */
export type Forward = (problem: AttentionProblem, o: Float32Array, lse: Float32Array) => void;

/** The buffers of a backward pass, beside the inputs. */
export type GradientBuffers = Omit<BackwardBuffers, 'q' | 'k' | 'v' | 'mask'>;

function largest(x: Float32Array): number {
  let most = 0;
  for (const value of x) if (abs(value) < Infinity) most = max(most, abs(value));
  return most;
}

/** What float32 may lose of a problem's scores: a bound of their magnitude times its last bits. */
function lostInScores(problem: AttentionProblem, {q, k}: RandomProblem['inputs']): number {
  return (OF_SCORES * (abs(problem.scale) * largest(q) * largest(k) * problem.qkDim)) / 4;
}

type Sizes = readonly [batch: number, heads: number, tokens: number, dim: number];

/**
 * The largest difference of each row, in order of batches, heads and tokens; Infinity where only one of the two is NaN, and
 * everywhere if what lies between elements is not UNWRITTEN any more.
 */
function rowDifferences(
  actual: Float32Array,
  expected: ArrayLike<number>,
  strides: TokenStrides,
  sizes: Sizes,
): Float64Array {
  const [batch, heads, tokens, dim] = sizes;
  const rows = new Float64Array(batch * heads * tokens);
  const rest = actual.slice();
  let visited = 0;
  forEachElement(strides, sizes, (at) => {
    const x = actual[at]!;
    const y = expected[at]!;
    const row = Math.floor(visited++ / dim);
    if (isNaN(x) !== isNaN(y)) rows[row] = Infinity;
    else if (!isNaN(x) && x !== y) rows[row] = max(rows[row]!, abs(x - y));
    rest[at] = UNWRITTEN;
  });
  return rest.every((x) => x === UNWRITTEN) ? rows : rows.fill(Infinity);
}

const most = (x: Float64Array): number => x.reduce((so, far) => max(so, far), 0);

/** o and lse of `recipe`; `expected` where the reference is known from another engine's check. */
export function checkRandomForward(
  random: RandomProblem,
  recipe: Recipe,
  allowance: Allowance,
  forward: Forward,
  expected?: AttentionResult,
): string[] {
  const {q, k, v, mask} = random.inputs;
  const problem = random.problem(recipe);
  const {batch, qHeads, qLen, vDim, wantLse} = problem;
  const wanted = expected ?? referenceAttention(problem, q, k, v, mask);
  const o = new Float32Array(random.oLength).fill(UNWRITTEN);
  const lse = new Float32Array(batch * qHeads * qLen).fill(UNWRITTEN);
  forward(problem, o, lse);

  const failures: string[] = [];
  const {precision} = recipe;
  const {ofScores = {lse: 1, o: 1}} = allowance;
  const lost = lostInScores(problem, random.inputs);
  const vMost = largest(v);
  const errors = rowDifferences(o, wanted.o, problem.o, [batch, qHeads, qLen, vDim]);
  const bound = (allowance.o + ofScores.o * lost) * vMost;
  const beyond = errors.filter((error) => !(error <= bound));
  const rare = max(1, errors.length / 32);
  const farthest = ((allowance.otherNeighbour ?? 0) + ofScores.o * lost) * vMost;
  if (beyond.length > 0 && !(beyond.length <= rare && most(beyond) <= farthest)) {
    const count = `${beyond.length} of ${errors.length} rows`;
    failures.push(`${precision}, o ${most(errors)}, allowed ${bound}, ${count}: ${random.name}`);
  }
  const rows = {batch: qHeads * qLen, head: qLen, token: 1};
  const wantedLse = wantLse ? wanted.lse : lse.slice().fill(UNWRITTEN);
  const off = most(rowDifferences(lse, wantedLse, rows, [batch, qHeads, qLen, 1]));
  if (!(off <= allowance.lse + ofScores.lse * lost)) {
    failures.push(`${precision}, lse ${off}: ${random.name}`);
  }
  return failures;
}

/** The gradients of `exact`; `at` seeds the gradients of o and lse, and says whether lse and the mask have one. */
export function checkRandomGradients(
  random: RandomProblem,
  at: number,
  run: (problem: AttentionProblem, buffers: GradientBuffers) => void,
): string[] {
  const problem = {...random.problem(recipeOf('exact')), wantLse: true};
  const {batch, qHeads, kvHeads, qLen, kvLen, qkDim, vDim} = problem;
  const {q, k, v, mask} = random.inputs;
  const normal = new Random(at);
  const dO = new Float32Array(random.oLength).fill(NaN);
  forEachElement(problem.o, [batch, qHeads, qLen, vDim], (n) => (dO[n] = normal.normal()));
  const rows = batch * qHeads * qLen;
  const dLse = at % 2 === 1 ? new Float32Array(rows).map(() => normal.normal()) : null;
  const unwritten = (like: {length: number}) => new Float32Array(like.length).fill(UNWRITTEN);
  const trained = problem.maskKind === 'additive' && at % 3 > 0;
  const [o, lse] = [unwritten(dO), new Float32Array(rows)];
  const [dQ, dK, dV] = [unwritten(q), unwritten(k), unwritten(v)];
  const dMask = trained ? unwritten(mask!) : null;
  run(problem, {o, lse, dO, dLse, dQ, dK, dV, dMask});

  const failures: string[] = [];
  const expected = referenceGradients(problem, q, k, v, mask, dO, dLse);
  // What one term may be: a gradient whose terms cancel is rounding.
  const dP = 3 * (1 + sqrt(vDim) * largest(v));
  const scale = abs(problem.scale);
  const lost = lostInScores(problem, random.inputs);
  const check = (
    name: string,
    actual: Float32Array,
    wanted: Float64Array,
    strides: TokenStrides,
    sizes: Sizes,
    term: number,
  ): void => {
    const error = most(rowDifferences(actual, wanted, strides, sizes));
    const size = max(
      term,
      wanted.reduce((so, x) => max(so, abs(x)), 0),
    );
    if (error <= (GRADIENT_BOUND + lost) * size) return;
    failures.push(`${name} ${error} of ${size}: ${random.name}`);
  };
  const [qSizes, kSizes] = [
    [batch, qHeads, qLen, qkDim],
    [batch, kvHeads, kvLen, qkDim],
  ] as const;
  check('dQ', dQ, expected.dQ, problem.q, qSizes, scale * dP * largest(k));
  check('dK', dK, expected.dK, problem.k, kSizes, scale * dP * largest(q));
  check('dV', dV, expected.dV, problem.v, [batch, kvHeads, kvLen, vDim], 1);
  if (dMask !== null) {
    const flat = {batch: 0, head: 0, token: 0};
    check('dMask', dMask, expected.dMask!, flat, [1, 1, 1, dMask.length], dP);
  }
  return failures;
}
