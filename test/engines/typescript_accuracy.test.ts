/** The TypeScript engine over many key tiles: every recipe's bound against float64 at 1,000 tokens. */
import {PRECISIONS} from '../../src/numerics/recipes.js';
import {exactAttention} from '../../src/numerics/reference.js';
import {casesTagged, makeInputs, problemOf, relativeL1Bound} from '../cases.js';
import type {AttentionCase} from '../cases.js';
import {attend, outputRows, recipeOf, relativeL1, spreadRows} from './typescript_checks.js';

const CASES_OF_1000 = casesTagged('accuracy')
  .filter((c) => c.qLen === 1000 && c.headDim === 64)
  .map((c): AttentionCase => ({...c, heads: 1, kvHeads: 1}));

describe.each(CASES_OF_1000.map((c) => [c.name, c] as const))('%s', (_name, c) => {
  const inputs = makeInputs(c, 51);
  const {q, k, v} = inputs;
  const rows = spreadRows(problemOf(c, recipeOf('exact')), 60);

  test.each(PRECISIONS)('%s', (precision) => {
    const problem = problemOf(c, recipeOf(precision));
    const truth = outputRows(problem, exactAttention(problem, q, k, v, null, rows).o, rows);
    const error = relativeL1(outputRows(problem, attend(problem, inputs).o, rows), truth);
    expect(error).toBeLessThanOrEqual(relativeL1Bound(c, precision));
    // A quantised recipe that is better than a hundredth of its bound was not quantised.
    if (precision !== 'exact') expect(error).toBeGreaterThan(relativeL1Bound(c, precision) / 100);
  });
});
