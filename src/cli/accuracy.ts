/**
 * `accuracy`: every recipe on every engine against exact attention in float64, on the cases and distributions of the
 * jest accuracy suites.
 */
import {
  ACCURACY_CASES,
  accuracyInputs,
  accuracyProblem,
  type AccuracyCase,
  type AccuracyInputs,
} from '../accuracy/accuracy_cases.js';
import {compareArrays, type AccuracyMetrics} from '../accuracy/metrics.js';
import type {Distribution} from '../accuracy/distributions.js';
import type {Engine} from '../engines/engine.js';
import {nativeEngine} from '../engines/native.js';
import {typescriptEngine} from '../engines/typescript/typescript_engine.js';
import {PRECISIONS, type Precision} from '../numerics/recipes.js';
import {CliError} from './cli_error.js';
import {formatNumber, formatTable} from './table.js';
import type {Terminal} from './terminal.js';

export const ACCURACY_ENGINES = ['native', 'typescript'] as const;
export type AccuracyEngine = (typeof ACCURACY_ENGINES)[number];

/** Distributions that the cases have, in their order. */
export const ACCURACY_DISTRIBUTIONS: readonly Distribution[] = [
  ...new Set(ACCURACY_CASES.map(({distribution}) => distribution)),
];

export interface AccuracyOptions {
  /** Default: both, where they are. */
  readonly engine?: readonly AccuracyEngine[] | undefined;
  readonly precision?: readonly Precision[] | undefined;
  readonly distribution?: readonly Distribution[] | undefined;
  /** Every case on the TypeScript engine too. Default: some. */
  readonly full?: boolean | undefined;
  /** Cases to run. Default: `ACCURACY_CASES`. */
  readonly cases?: readonly AccuracyCase[] | undefined;
}

export interface AccuracyRow extends AccuracyCase, AccuracyMetrics {
  readonly engine: AccuracyEngine;
  readonly precision: Precision;
}

export interface AccuracyBody {
  readonly rows: readonly AccuracyRow[];
}

/** Tokens of a small case: two full tiles of keys and a rest of one. */
const SMALL_TOKENS = 257;

/**
 * What the TypeScript engine runs unless `--full` says otherwise: a head of 1,000 tokens takes it a second for each
 * recipe, so its share of the whole table would take minutes. Each distribution once, short, and the grouped heads.
 */
const SMALL_CASES: readonly AccuracyCase[] = [
  ...ACCURACY_DISTRIBUTIONS.map((distribution): AccuracyCase => {
    const isLong = distribution === 'long';
    return {
      distribution,
      batch: 1,
      heads: 1,
      kvHeads: 1,
      qLen: isLong ? 16 : SMALL_TOKENS,
      kvLen: isLong ? 4096 : SMALL_TOKENS,
      headDim: 64,
      causal: false,
    };
  }),
  ...ACCURACY_CASES.filter(({heads, kvHeads}) => heads !== kvHeads),
];

export async function runAccuracy(
  options: AccuracyOptions,
  terminal: Terminal,
): Promise<AccuracyBody> {
  const {precision = PRECISIONS, distribution = ACCURACY_DISTRIBUTIONS} = options;
  const engines = findEngines(options.engine, terminal);
  const cases = new Map(
    [...engines.keys()].map((name) => [
      name,
      casesOf(name, options).filter((c) => distribution.includes(c.distribution)),
    ]),
  );
  // The float64 answer takes longer than all recipes together, so a case is computed once for all engines.
  const allCases = [...new Set([...cases.values()].flat())];
  const rows: AccuracyRow[] = [];
  for (const [i, c] of allCases.entries()) {
    terminal.note(`[${i + 1}/${allCases.length}] ${describeCase(c)}`);
    const inputs = accuracyInputs(c);
    for (const [name, engine] of engines) {
      if (!cases.get(name)?.includes(c)) continue;
      for (const p of precision) {
        rows.push({engine: name, precision: p, ...c, ...measure(engine, c, p, inputs)});
      }
    }
    // Lets the process be interrupted between two cases.
    await new Promise((resolve) => setImmediate(resolve));
  }
  for (const name of engines.keys()) printEngine(name, rows, terminal);
  if (cases.get('typescript')?.some((c) => !ACCURACY_CASES.includes(c))) {
    terminal.note(
      '\nThe TypeScript engine is slow, so it ran short cases; --full runs all of them.',
    );
  }
  return {rows};
}

function casesOf(engine: AccuracyEngine, {cases, full}: AccuracyOptions): readonly AccuracyCase[] {
  if (cases !== undefined) return cases;
  return engine === 'typescript' && !full ? SMALL_CASES : ACCURACY_CASES;
}

function findEngines(
  asked: readonly AccuracyEngine[] | undefined,
  terminal: Terminal,
): Map<AccuracyEngine, Engine> {
  const engines = new Map<AccuracyEngine, Engine>();
  for (const name of asked ?? ACCURACY_ENGINES) {
    if (name === 'typescript') {
      engines.set(name, typescriptEngine);
      continue;
    }
    const {engine, reason} = nativeEngine();
    if (engine !== null) engines.set(name, engine);
    else if (asked === undefined) terminal.note(`No native engine: ${reason}.`);
    else
      throw new CliError(
        `There is no native engine: ${reason}.`,
        'tfjs-sage-attention doctor says more.',
      );
  }
  return engines;
}

function measure(
  engine: Engine,
  c: AccuracyCase,
  precision: Precision,
  {q, k, v, expected}: AccuracyInputs,
): AccuracyMetrics {
  const o = new Float32Array(expected.length);
  engine.forward(accuracyProblem(c, precision), {q, k, v, mask: null, o, lse: null});
  return compareArrays(o, expected);
}

function describeCase(c: AccuracyCase): string {
  const {batch, heads, kvHeads, qLen, kvLen, headDim, causal} = c;
  const grouped = kvHeads === heads ? `${heads}` : `${heads}:${kvHeads}`;
  const lengths = qLen === kvLen ? `${qLen}` : `${qLen}x${kvLen}`;
  return `${c.distribution} B${batch} H${grouped} N${lengths} D${headDim}${causal ? ' causal' : ''}`;
}

/** Relative L1 with a line for each case and a column for each recipe, and the worst cosine of each below. */
function printEngine(name: AccuracyEngine, all: readonly AccuracyRow[], terminal: Terminal): void {
  const rows = all.filter(({engine}) => engine === name);
  if (rows.length === 0) return;
  const precisions = [...new Set(rows.map(({precision}) => precision))];
  const lines = new Map<string, string[]>();
  for (const row of rows) {
    const title = describeCase(row);
    lines.set(title, [...(lines.get(title) ?? [title]), formatNumber(row.relativeL1)]);
  }
  const worst = precisions.map((precision) => {
    const cosines = rows.filter((row) => row.precision === precision).map(({cosine}) => cosine);
    return cosines.some(Number.isNaN) ? 'NaN' : Math.min(...cosines).toFixed(6);
  });
  const columns = precisions.map(
    (title) => ({title: title.replace('_', '_\n'), align: 'right'}) as const,
  );
  terminal.print(
    `\nEngine ${name}: relative L1 against float64 (--json has cosine, rmse, maxAbs of each)\n`,
  );
  terminal.print(
    formatTable(
      [{title: 'case'}, ...columns],
      [...lines.values(), ['worst cosine', ...worst]],
      terminal.colours,
    ),
  );
}
