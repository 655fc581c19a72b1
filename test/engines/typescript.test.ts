/** The TypeScript engine, forward: every small case of the table under every recipe, against the float64 references. */
import {PRECISIONS} from '../../src/numerics/recipes.js';
import type {Precision} from '../../src/numerics/recipes.js';
import {exactAttention, referenceAttention} from '../../src/numerics/reference.js';
import {KEY_TILE} from '../../src/engines/typescript/tile_sizes.js';
import {casesTagged, makeInputs, problemOf, relativeL1Bound} from '../cases.js';
import type {AttentionCase, CaseInputs} from '../cases.js';
import {
  attend,
  largestDifference,
  lseRows,
  outputRows,
  recipeOf,
  relativeL1,
  spreadRows,
} from './typescript_checks.js';

/** Rows that the slow reference computes per head. */
const REFERENCE_ROWS = 12;

/** Within one key tile the running maximum is the final one, so P rounds alike; across tiles P rounds against another. */
function engineBound(c: AttentionCase, precision: Precision): number {
  return relativeL1Bound(c, precision) * (c.kvLen <= KEY_TILE ? 0.05 : 0.5);
}

/** lse of a rounded row sum moves with the rounding of P: half a step of 1/255 for each of many small p. */
function lseBound(c: AttentionCase, precision: Precision): number {
  if (precision === 'int8' && c.kvLen > KEY_TILE) return 0.15;
  return precision.startsWith('int') && c.kvLen > KEY_TILE ? 0.01 : 1e-5;
}

function checkRecipe(c: AttentionCase, inputs: CaseInputs, precision: Precision): void {
  const {q, k, v, mask} = inputs;
  const problem = problemOf(c, recipeOf(precision));
  const rows = spreadRows(problem, REFERENCE_ROWS);
  const exact = exactAttention(problem, q, k, v, mask, rows);
  const reference = referenceAttention(problem, q, k, v, mask, rows);
  const outputs = attend(problem, inputs);
  const o = outputRows(problem, outputs.o, rows);
  const expected = outputRows(problem, reference.o, rows);
  const truth = outputRows(problem, exact.o, rows);
  const ownError = relativeL1(o, truth);
  const summary = {
    recipe: precision,
    followsReference: relativeL1(o, expected) <= engineBound(c, precision),
    withinBound: ownError <= relativeL1Bound(c, precision),
    noWorseThanReference:
      precision === 'exact' || ownError <= 1.05 * relativeL1(expected, truth) + 1e-6,
  };
  expect(summary).toEqual({
    recipe: precision,
    followsReference: true,
    withinBound: true,
    noWorseThanReference: true,
  });
  if (!outputs.lse) return;
  const lse = lseRows(problem, outputs.lse, rows);
  expect(largestDifference(lse, lseRows(problem, reference.lse, rows))).toBeLessThan(
    lseBound(c, precision),
  );
}

describe.each(casesTagged('fast').map((c) => [c.name, c] as const))('%s', (_name, c) => {
  test('every recipe follows the reference', () => {
    const inputs = makeInputs(c, 5);
    for (const precision of PRECISIONS) checkRecipe(c, inputs, precision);
  });

  test('every element is written', () => {
    const inputs = makeInputs(c, 6);
    const problem = problemOf(c, recipeOf('exact'));
    const {o, lse} = attend(problem, inputs);
    const exact = exactAttention(problem, inputs.q, inputs.k, inputs.v, inputs.mask);
    expect(relativeL1(o, exact.o)).toBeLessThanOrEqual(relativeL1Bound(c, 'exact'));
    if (lse) expect(largestDifference(lse, exact.lse)).toBeLessThan(1e-5);
  });
});
