/**
 * `doctor`: which engines run here and why, what serves which call, and the next command for whatever is wrong.
 * Every question is guarded, so the report always comes.
 */
import picocolors from 'picocolors';
import type {EngineChoiceRow} from '../engines/choose_engine.js';
import {getSageAttentionInfo} from '../index.js';
import {PRECISIONS} from '../numerics/recipes.js';
import type {EngineInfo} from '../runtime/info.js';
import {checkAttention, NOT_TRIED} from './doctor_attention.js';
import {
  checkAddon,
  checkBackends,
  checkConfiguration,
  checkModel,
  checkNode,
  checkTfjs,
  guarded,
  probeCandidates,
  type CandidateReport,
  type Check,
} from './doctor_checks.js';
import {checkCuda, printCuda, type CudaReport} from './doctor_cuda.js';
import {checkTensorflow, type TensorflowReport} from './doctor_tensorflow.js';
import {describeMachine, machineLine} from './machine.js';
import {formatTable} from './table.js';
import type {Terminal} from './terminal.js';

export interface DoctorBody {
  readonly engines: readonly EngineInfo[];
  readonly choices: readonly EngineChoiceRow[];
  readonly checks: readonly Check[];
  /** tfjs-node and the TensorFlow under it. */
  readonly tensorflow: TensorflowReport;
  /** Driver, devices, measured costs; null where asking failed. */
  readonly cuda: CudaReport | null;
}

export async function runDoctor(_options: object, terminal: Terminal): Promise<DoctorBody> {
  terminal.note('Trying the native addon and TensorFlow in processes of their own ...');
  let candidates: CandidateReport[] = [];
  const tensorflow = await checkTensorflow();
  let cuda: CudaReport | null = null;
  const checks: Check[] = [
    await guarded('Node', checkNode),
    await guarded('environment', checkConfiguration),
    await guarded('native addon', () => {
      candidates = probeCandidates();
      return checkAddon(candidates);
    }),
    await guarded('CUDA', () => {
      const {report, check} = checkCuda();
      cuda = report;
      return check;
    }),
    await guarded('tfjs-core', checkTfjs),
    ...(await checkBackends()),
    ...tensorflow.checks,
    await guarded('model js-gpt', checkModel),
  ];
  const {engines, choices} = getSageAttentionInfo();
  const onTensorflow = tensorflow.report.trial?.choices ?? [];
  const tried = engines.map((engine) => tryEngine(engine, candidates));
  checks.push(...tried.flatMap(({check}) => check ?? []));
  const body = {
    engines: tried.map(({engine}) => engine),
    // This process has no TensorFlow, the one that tried it had.
    choices: [
      ...choices.filter(({backend}) => backend !== 'tensorflow' || onTensorflow.length === 0),
      ...onTensorflow,
    ],
    checks,
    tensorflow: tensorflow.report,
    cuda: cuda as CudaReport | null,
  };
  printReport(body, terminal);
  return body;
}

/** The engine with what a small attention by it came to, and a check where that went wrong. */
function tryEngine(
  info: EngineInfo,
  candidates: readonly CandidateReport[],
): {engine: EngineInfo; check: Check | null} {
  const details = info.name === 'native' ? {...info.details, candidates} : info.details;
  if (!info.available) return {engine: {...info, details}, check: null};
  const attention = checkAttention(info.name);
  const engine = {...info, details: {...details, attention}};
  const {ok, message, fix} = attention;
  const status = message === NOT_TRIED ? 'warning' : 'failed';
  return {engine, check: ok ? null : {name: `engine ${info.name}`, status, message, fix}};
}

/** A table tells the beginning; the checks above it tell the rest. */
const CELL_CHARACTERS = 110;

function shorten(text: string): string {
  return text.length > CELL_CHARACTERS ? `${text.slice(0, CELL_CHARACTERS - 3)}...` : text;
}

function printReport({engines, choices, checks, cuda}: DoctorBody, terminal: Terminal): void {
  const {bold, green, yellow, red} = picocolors.createColors(terminal.colours);
  const marks = {ok: green('ok'), warning: yellow('note'), failed: red('FAILED')};
  const table = (titles: string[], rows: string[][]): string =>
    formatTable(
      titles.map((title) => ({title})),
      rows.map((row) => row.map(shorten)),
      terminal.colours,
    );
  terminal.print(machineLine(describeMachine()));
  terminal.print(`\n${bold('Checks')}`);
  for (const {name, status, message} of checks)
    terminal.print(`${marks[status]}  ${name}: ${message}`);
  terminal.print(`\n${bold('Engines')}`);
  terminal.print(
    table(
      ['engine', 'here', 'why', 'a small attention'],
      engines.map(({name, available, reason, details}) => [
        name,
        available ? 'yes' : 'no',
        reason,
        (details['attention'] as {message: string} | undefined)?.message ?? '',
      ]),
    ),
  );
  const facts = nativeFacts(engines);
  if (facts !== '') terminal.print(`\n${facts}`);
  terminal.print(`\n${bold('Who computes what')}`);
  terminal.print(table(['backend', 'precision', 'engine', 'why'], groupChoices(choices)));
  if (cuda?.costs) {
    terminal.print(`\n${bold('Through the GPU, from backend cpu or wasm')}`);
    printCuda(cuda, terminal);
  }
  const fixes = checks.filter(({fix}) => fix !== null);
  if (fixes.length === 0) {
    terminal.print(`\nNothing to mend. Next: npx tfjs-sage-attention demo`);
    return;
  }
  terminal.print(`\n${bold('What to do')}`);
  for (const {name, fix} of fixes) terminal.print(`${name}: ${fix}`);
}

/** Features of the processor and threads, as the addon sees them. */
function nativeFacts(engines: readonly EngineInfo[]): string {
  const details = engines.find(({name}) => name === 'native')?.details ?? {};
  const {features, threads, isa, path} = details as {
    features?: Record<string, boolean>;
    threads?: {chosen: number; processors: number};
    isa?: {available: readonly string[]};
    path?: string;
  };
  if (!features || !threads || !isa) return '';
  const present = Object.keys(features).filter((name) => features[name]);
  return [
    `addon: ${path}`,
    `processor features: ${present.join(', ')}`,
    `instruction sets: ${isa.available.join(', ')}`,
    `threads: ${threads.chosen} of ${threads.processors} processors`,
  ].join('\n');
}

/** `auto` on a line of its own, then precisions that share engine and reason on one. */
function groupChoices(choices: readonly EngineChoiceRow[]): string[][] {
  const groups = new Map<string, EngineChoiceRow[]>();
  for (const row of choices) {
    const key = [row.backend, row.precision === 'auto', row.engine, row.reason].join('|');
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  const sizes = new Map<string, number>();
  for (const {backend} of choices) sizes.set(backend, (sizes.get(backend) ?? 0) + 1);
  return [...groups.values()].map((rows) => {
    const [{backend, engine, reason}] = rows as [EngineChoiceRow];
    // All recipes of a backend: no need to list them.
    const all = rows.length > 1 && rows.length === (sizes.get(backend) ?? 0) - 1;
    const names = all ? 'every recipe' : listRecipes(rows);
    return [backend, names, engine ?? 'none', reason];
  });
}

function listRecipes(rows: readonly EngineChoiceRow[]): string {
  const names = rows.map(({precision}) => precision);
  const onlyExactMissing = names.length === PRECISIONS.length - 1 && !names.includes('exact');
  return onlyExactMissing ? 'the quantised recipes' : names.join(', ');
}
