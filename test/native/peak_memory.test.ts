/** Working memory of the native engine: bounded whatever the number of tokens and heads, nothing of N x N. */
import {execFileSync} from 'node:child_process';
import {existsSync} from 'node:fs';
import {join} from 'node:path';
import {isRefusal, resolveRecipe, type Precision} from '../../src/numerics/recipes.js';
import {encodeProblem, PROBLEM_WORDS} from '../../src/problem.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {CASES, problemOf} from '../cases.js';

jest.setTimeout(240_000);

const HEADS = 8;
const TOKENS = 16_384;
const LIMIT_MIB = 64;

const {addon, attempts} = loadAddon();
const path = attempts[attempts.length - 1]?.path ?? '';

function risenMib(precision: Precision, threads: number): number {
  const recipe = resolveRecipe(precision, {});
  if (isRefusal(recipe)) throw new Error(precision);
  const problem = problemOf(
    {
      ...CASES[0]!,
      heads: HEADS,
      kvHeads: HEADS,
      qLen: TOKENS,
      kvLen: TOKENS,
      headDim: 64,
      vDim: 64,
      wantLse: true,
    },
    recipe,
  );
  const job = {
    words: [...encodeProblem(problem, new Float64Array(PROBLEM_WORDS))],
    elements: HEADS * TOKENS * 64,
    rows: HEADS * TOKENS,
    isa: null,
    threads,
  };
  const child = join(__dirname, 'peak_memory_child.cjs');
  const output = execFileSync(process.execPath, [child, path, JSON.stringify(job)], {encoding: 'utf8'});
  const {risenKib, sum} = JSON.parse(output) as {risenKib: number; sum: number};
  expect(Number.isFinite(sum)).toBe(true);
  return risenKib / 1024;
}

const linux = existsSync('/proc/self/status') ? test : test.skip;

linux.each([1, 2])('N 16,384, H 8, D 64 stays under 64 MiB with %i thread(s)', (threads) => {
  expect(addon).not.toBeNull();
  const risen = (['exact', 'int16', 'int8_int16', 'int8_bf16', 'int8'] as const).map(
    (precision) => ({precision, mib: risenMib(precision, threads)}),
  );
  expect(risen.filter(({mib}) => !(mib < LIMIT_MIB))).toEqual([]);
  // The packed K and V of a head alone are some MiB: a reading of nothing would be a fault of this test.
  expect(risen.every(({mib}) => mib > 0.5)).toBe(true);
});
