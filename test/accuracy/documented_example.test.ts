/** docs/accuracy.md shows user_suite.test.ts, which runs: the two must not drift apart. */
import {readFileSync} from 'node:fs';
import {join} from 'node:path';

const SOURCES: Readonly<Record<string, string>> = {
  'tfjs-sage-attention': '../../src/index.js',
  'tfjs-sage-attention/jest': '../../src/accuracy/jest.js',
};

test('the example of docs/accuracy.md is the suite that runs, but for the names of the package', () => {
  const docs = readFileSync(join(__dirname, '../../docs/accuracy.md'), 'utf8');
  const example = /```ts\n([\s\S]*?)```/.exec(docs)?.[1] ?? '';
  const inTree = example.replace(
    /from '(tfjs-sage-attention[^']*)'/g,
    (_, name: string) => `from '${SOURCES[name]}'`,
  );
  expect(inTree).toBe(readFileSync(join(__dirname, 'user_suite.test.ts'), 'utf8'));
});
