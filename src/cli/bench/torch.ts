/**
 * PyTorch's attention on the CPU as a peer, float32 and bfloat16, in a process of its own that is asked over its standard
 * streams. It is no dependency of this package: it lives in a virtual environment in the user's cache folder, which is
 * made when it is first asked for, or in an environment that the user names.
 */
import {spawn, spawnSync, type ChildProcessWithoutNullStreams} from 'node:child_process';
import {createHash} from 'node:crypto';
import {existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {homedir, tmpdir} from 'node:os';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {CliError, messageOf} from '../cli_error.js';
import type {Terminal} from '../terminal.js';
import type {BenchCase} from './bench_cases.js';
import type {BenchInputs} from './bench_inputs.js';
import type {Contender} from './bench_timing.js';
import {isHeldToAvx2} from './held_to_avx2.js';
import {peersFolder} from './onnxruntime.js';

export const TORCH_DTYPES = ['float32', 'bfloat16'] as const;

/** A process that has PyTorch; one case at a time. */
export interface Torch {
  readonly version: string;
  /** The instruction sets that it uses, in its own words. */
  readonly capability: string;
  /** One contender for each type of numbers. */
  contenders(c: BenchCase, inputs: BenchInputs, threads: number): Contender[];
  close(): void;
}

/**
 * Starts PyTorch.
 *
 * @param python An interpreter that has torch and numpy; `true` for the environment of the benchmark's own.
 * @throws CliError where there is no Python, or no PyTorch for it.
 */
export async function startTorch(python: string | true, terminal: Terminal): Promise<Torch> {
  const {worker, about} = await startTorchProcess(python, 'attention.py', terminal);
  return {
    version: String(about['version']),
    capability: String(about['capability']),
    contenders: (c, inputs, threads) =>
      TORCH_DTYPES.map((dtype) => torchContender(worker, c, inputs, threads, dtype)),
    close: () => worker.close(),
  };
}

/**
 * Runs a script of bench/peers/torch and asks what it is about.
 *
 * @param python As for `startTorch`.
 * @throws CliError where there is no Python, no PyTorch for it, or the script says why not.
 */
export async function startTorchProcess(
  python: string | true,
  script: string,
  terminal: Terminal,
): Promise<{readonly worker: TorchProcess; readonly about: Record<string, unknown>}> {
  const peers = peersFolder();
  if (peers === null) {
    throw new CliError('PyTorch as a peer needs a clone of the repository: bench/peers is there.');
  }
  const folder = join(peers, 'torch');
  const program = python === true ? ownEnvironment(folder, terminal) : python;
  const worker = new TorchProcess(program, join(folder, script));
  try {
    return {worker, about: await worker.ask({ask: 'about'})};
  } catch (error) {
    worker.close();
    throw new CliError(
      `PyTorch does not run by ${program}: ${messageOf(error)}`,
      'Name an interpreter that has torch and numpy: --torch <python>.',
      {cause: error},
    );
  }
}

/** The interpreter of an environment with the pinned packages, made if it is not there. */
function ownEnvironment(folder: string, terminal: Terminal): string {
  const requirements = join(folder, 'requirements.txt');
  const pinned = createHash('sha256').update(readFileSync(requirements)).digest('hex').slice(0, 12);
  const environment = join(homedir(), '.cache', 'tfjs-sage-attention', `bench-torch-${pinned}`);
  const python = join(
    environment,
    ...(process.platform === 'win32' ? ['Scripts', 'python.exe'] : ['bin', 'python']),
  );
  // Written last: without it an earlier attempt was cut off.
  const done = join(environment, 'complete');
  if (existsSync(done)) return python;
  terminal.note(`Installing PyTorch into ${environment} (once, up to 6 GB) ...`);
  const base = process.platform === 'win32' ? 'python' : 'python3';
  for (const [program, ...args] of [
    [base, '-m', 'venv', '--clear', environment],
    [python, '-m', 'pip', 'install', '--quiet', '--requirement', requirements],
  ] as const) {
    // pip's own output must not reach the report.
    const {status, error} = spawnSync(program, args, {stdio: ['ignore', 2, 2]});
    if (status === 0) continue;
    throw new CliError(
      `PyTorch could not be installed: ${error?.message ?? `${program} said why`}.`,
      'Name an interpreter that has torch and numpy: --torch <python>.',
    );
  }
  writeFileSync(done, '');
  return python;
}

function torchContender(
  worker: TorchProcess,
  c: BenchCase,
  inputs: BenchInputs,
  threads: number,
  dtype: (typeof TORCH_DTYPES)[number],
): Contender {
  const folder = mkdtempSync(join(tmpdir(), 'sage-bench-'));
  for (const name of ['q', 'k', 'v'] as const) writeFileSync(join(folder, name), inputs[name]);
  const take = async (): Promise<void> => {
    if (worker.current === folder) return;
    await worker.ask({
      ask: 'case',
      heads: c.heads,
      kv_heads: c.kvHeads,
      tokens: c.tokens,
      head_dim: c.headDim,
      causal: c.causal,
      dtype,
      threads,
      folder,
    });
    worker.current = folder;
  };
  const time = async (count: number): Promise<number> => {
    await take();
    return Number((await worker.ask({ask: 'time', count}))['ms']);
  };
  return {
    engine: 'peer:torch',
    precision: dtype,
    group: 'torch',
    run: async () => void (await time(1)),
    time,
    output: async () => {
      await take();
      await worker.ask({ask: 'output', folder});
      const bytes = readFileSync(join(folder, 'o'));
      return new Float32Array(
        bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length),
      );
    },
    dispose: () => rmSync(folder, {recursive: true, force: true}),
  };
}

/** A process that is asked one question at a time, a JSON object a line each way. */
export class TorchProcess {
  /** Folder of the case that it holds. */
  current: string | null = null;
  readonly #child: ChildProcessWithoutNullStreams;
  #waiting: {resolve: (line: string) => void; reject: (error: Error) => void} | null = null;
  #ended: Error | null = null;

  constructor(python: string, script: string) {
    const child = spawn(python, [script, ...(isHeldToAvx2() ? ['avx2'] : [])], {
      stdio: ['pipe', 'pipe', 'pipe'],
    });
    this.#child = child;
    let said = '';
    child.stderr.on('data', (data: Buffer) => (said = (said + data.toString()).slice(-2000)));
    createInterface({input: child.stdout}).on('line', (line) => {
      this.#waiting?.resolve(line);
      this.#waiting = null;
    });
    const end = (error: Error): void => {
      this.#ended = error;
      this.#waiting?.reject(error);
      this.#waiting = null;
    };
    child.on('error', end);
    child.on('close', () => end(new Error(said.trim().split('\n').at(-1) ?? 'it ended')));
    // A process that ended is told by `close`.
    child.stdin.on('error', () => undefined);
  }

  async ask(request: object): Promise<Record<string, unknown>> {
    if (this.#ended !== null) throw this.#ended;
    const line = await new Promise<string>((resolve, reject) => {
      this.#waiting = {resolve, reject};
      this.#child.stdin.write(`${JSON.stringify(request)}\n`);
    });
    const answer = JSON.parse(line) as Record<string, unknown>;
    if (typeof answer['error'] === 'string') throw new Error(answer['error']);
    return answer;
  }

  close(): void {
    this.#child.stdin.end();
    this.#child.kill();
  }
}
