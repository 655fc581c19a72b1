/** The accuracy suites that users get, on the native engine: every recipe within the tolerance that `toleranceOf` promises. */
import {
  ACCURACY_CASES,
  accuracyInputs,
  accuracyProblem,
} from '../../src/accuracy/accuracy_cases.js';
import {compareArrays} from '../../src/accuracy/metrics.js';
import {toleranceOf} from '../../src/accuracy/tolerances.js';
import {nativeEngine} from '../../src/engines/native.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';

const titled = ACCURACY_CASES.map(
  (c) => [`${c.distribution} ${c.batch}x${c.heads}x${c.qLen}x${c.kvLen}x${c.headDim}`, c] as const,
);

test.each(titled)('%s', (_title, c) => {
  const {engine, reason} = nativeEngine();
  if (engine === null) throw new Error(reason);
  const {q, k, v, expected} = accuracyInputs(c);
  const failures: string[] = [];
  for (const precision of PRECISIONS) {
    const o = new Float32Array(expected.length);
    engine.forward(accuracyProblem(c, precision), {q, k, v, mask: null, o, lse: null});
    const {relativeL1} = compareArrays(o, expected);
    const bound = toleranceOf(precision, c.distribution, Math.min(c.qLen, c.kvLen)).relativeL1;
    if (!(relativeL1 <= bound)) failures.push(`${precision}: ${relativeL1}, allowed ${bound}`);
  }
  expect(failures).toEqual([]);
});
