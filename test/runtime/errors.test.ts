/** The error class, its texts, and docs/errors.md and docs/options.md against the code. */
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {OPTION_NAMES} from '../../src/ops/options';
import {
  HONOURED_ACCUMULATORS,
  HONOURED_GRANULARITIES,
  PRECISIONS,
  resolveRecipe,
  isRefusal,
} from '../../src/numerics/recipes';
import {
  describeValue,
  listChoices,
  SAGE_ERROR_CODES,
  SageAttentionError,
} from '../../src/runtime/errors';
import {unknownKeyError} from '../../src/runtime/unknown_keys';

const docs = join(__dirname, '..', '..', 'docs');
const headings = (text: string) =>
  [...text.matchAll(/^## `?([a-z-]+)`?$/gm)].map(([, heading]) => heading);

it('docs/errors.md has a heading per code, in the same order', () => {
  const text = readFileSync(join(docs, 'errors.md'), 'utf8');
  expect(headings(text)).toEqual([...SAGE_ERROR_CODES]);
});

it('every heading of docs/errors.md has a cause and a cure', () => {
  const text = readFileSync(join(docs, 'errors.md'), 'utf8');
  for (const section of text.split(/^## /m).slice(1)) {
    expect(section).toContain('**Cause.**');
    expect(section).toContain('**Cure.**');
  }
});

/** Cells of the table rows of a Markdown text whose first cell is `name` in backticks. */
function cells(text: string, name: string): string[] {
  const row = text.split('\n').find((line) => line.startsWith(`| \`${name}\` |`));
  return (row ?? '').split('|').map((cell) => cell.trim());
}

it('docs/options.md has a row per option and per recipe, with the recipe table in agreement', () => {
  const text = readFileSync(join(docs, 'options.md'), 'utf8');
  for (const name of [...OPTION_NAMES, 'signal']) {
    expect({name, cells: cells(text, name).length}).toEqual({name, cells: 6});
  }
  const list = (names: readonly string[]) =>
    names.length === 0 ? '-' : names.map((name) => `\`${name}\``).join(', ');
  for (const precision of PRECISIONS) {
    const recipe = resolveRecipe(precision, {});
    if (isRefusal(recipe)) throw new Error('a default is refused');
    const paper = !isRefusal(resolveRecipe(precision, {variant: 'paper'}));
    expect(cells(text, precision).slice(2, 8)).toEqual([
      recipe.smoothQ > 0 ? 'on' : 'off',
      recipe.smoothK ? 'on' : 'off',
      recipe.smoothV > 0 ? 'on' : 'off',
      list(HONOURED_GRANULARITIES[precision]),
      list(HONOURED_ACCUMULATORS[precision]),
      paper ? 'yes' : 'no',
    ]);
  }
});

it('an error carries its parts', () => {
  const cause = new Error('below');
  const error = new SageAttentionError({
    code: 'engine-failed',
    argument: null,
    message: 'What happened.',
    hint: 'What to do.',
    cause,
  });
  expect(error).toBeInstanceOf(Error);
  expect(error).toMatchObject({
    name: 'SageAttentionError',
    message: 'What happened. What to do.',
    code: 'engine-failed',
    argument: null,
    hint: 'What to do.',
    docsUrl: 'docs/errors.md#engine-failed',
    cause,
  });
});

it.each<[unknown, string]>([
  ['x', `'x'`],
  [undefined, 'undefined'],
  [null, 'null'],
  [NaN, 'NaN'],
  [[1, 'a'], `[1, 'a']`],
  [new Date(0), 'an object of kind Date'],
  [Object.create(null), 'an object of kind Object'],
  [() => 1, 'a function'],
  [Symbol('s'), 'a symbol'],
  [10n, '10'],
  ['y'.repeat(100), `'${'y'.repeat(59)}...`],
])('describes %p', (value, text) => {
  expect(describeValue(value)).toBe(text);
});

it('lists choices', () => {
  expect([listChoices([]), listChoices(['a']), listChoices(['a', 'b', 'c'])]).toEqual([
    '',
    `'a'`,
    `'a', 'b' or 'c'`,
  ]);
});

it('suggests the nearest key, or tells all', () => {
  const known = ['isCausal', 'scale'];
  expect(unknownKeyError('op', 'scal', known).hint).toBe('Did you mean `scale`?');
  expect(unknownKeyError('op', 'xyz', known).hint).toBe(`The options are 'isCausal' or 'scale'.`);
});
