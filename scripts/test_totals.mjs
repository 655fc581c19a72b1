// Prints `N passed, N failed, N skipped` over the result files that `npm test` left. A test file that could not run at
// all counts as one failure; no results at all is an error, so that a broken run never reads as an empty success.
import {existsSync, readdirSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import {testResults} from './jobs.mjs';

const files = existsSync(testResults) ? readdirSync(testResults) : [];
const totals = {passed: 0, failed: 0, skipped: 0};
for (const file of files) {
  const result = JSON.parse(readFileSync(join(testResults, file), 'utf8'));
  totals.passed += result.numPassedTests;
  totals.failed += result.numFailedTests + result.numRuntimeErrorTestSuites;
  totals.skipped += result.numPendingTests + result.numTodoTests;
}
if (totals.passed === 0) {
  console.error('No test passed: `npm test` left no results.');
  totals.failed ||= 1;
}
console.log(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
process.exitCode = totals.failed === 0 ? 0 : 1;
