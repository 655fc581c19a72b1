/**
 * ONNX Runtime as a peer: its three attention operators on the CPU, float32. It is no dependency of this package: in a
 * clone `bench --peers` installs it into bench/peers, elsewhere the user does.
 */
import {spawnSync} from 'node:child_process';
import {existsSync, readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {join} from 'node:path';
import {platform} from '#platform';
import {CliError, messageOf} from '../cli_error.js';
import type {Terminal} from '../terminal.js';
import type {BenchCase} from './bench_cases.js';
import type {BenchInputs} from './bench_inputs.js';
import {headsToTokens, repeatHeads, tokensToHeads} from './bench_inputs.js';
import type {Contender} from './bench_timing.js';
import {isHeldToAvx2, ortHeldToAvx2} from './held_to_avx2.js';
import {encodeOnnxModel, type OnnxNode, type OnnxValue} from './onnx_model.js';

const PACKAGE = 'onnxruntime-node';
/** The release that bench/peers/package.json pins. */
const VERSION = '1.30.0';

interface OrtTensor {
  readonly data: Float32Array;
}

interface OrtSession {
  run(feeds: Readonly<Record<string, OrtTensor>>): Promise<Record<string, OrtTensor>>;
  release(): Promise<void>;
}

/** What of onnxruntime-node is used, typed by hand since its own types come only with it. */
export interface Ort {
  readonly Tensor: new (
    type: 'float32' | 'int32',
    data: Float32Array | Int32Array,
    dims: readonly number[],
  ) => OrtTensor;
  readonly InferenceSession: {
    create(model: Uint8Array, options: object): Promise<OrtSession>;
  };
}

/** The library, and how it is told in reports. */
export interface OrtPeer {
  readonly ort: Ort;
  readonly about: string;
}

/** The folder of a clone that names the peers; null in an installed package. */
export function peersFolder(): string | null {
  const {packageRoot} = platform;
  const folder = packageRoot === null ? null : join(packageRoot, 'bench', 'peers');
  return folder !== null && existsSync(join(folder, 'package.json')) ? folder : null;
}

/**
 * Finds ONNX Runtime in the folder of the peers, where it is installed if need be, or else in the working directory.
 * Where the native engine is held to AVX2, so is it, if it lies in that folder.
 * @throws CliError that says how to install it.
 */
export function loadOrt(terminal: Terminal, peers = peersFolder()): OrtPeer {
  if (peers !== null && !isInstalled(peers)) installPeers(peers, terminal);
  const asked = isHeldToAvx2();
  const held = peers !== null && asked ? ortHeldToAvx2(peers) : null;
  if (asked && held === null) {
    terminal.note(
      'ONNX Runtime is not held to AVX2: only its known library for Linux on x64 can be.',
    );
  }
  const from = held ?? peers ?? process.cwd();
  try {
    const load = createRequire(join(from, 'package.json'));
    const {version} = load(`${PACKAGE}/package.json`) as {version: string};
    return {ort: load(PACKAGE) as Ort, about: held === null ? version : `${version} (AVX2)`};
  } catch (cause) {
    throw new CliError(
      `${PACKAGE} cannot be loaded from ${from}: ${messageOf(cause).split('\n')[0]}`,
      peers !== null
        ? `rm -r ${join(peers, 'node_modules')} and try again.`
        : `ONNXRUNTIME_NODE_INSTALL=skip npm install --ignore-scripts ${PACKAGE}@${VERSION}`,
      {cause},
    );
  }
}

function isInstalled(peers: string): boolean {
  const manifest = JSON.parse(readFileSync(join(peers, 'package.json'), 'utf8')) as {
    dependencies: Readonly<Record<string, string>>;
  };
  return Object.keys(manifest.dependencies).every((name) =>
    existsSync(join(peers, 'node_modules', name)),
  );
}

/** The CPU library is in the package itself; its install script would fetch those for GPUs, so none is run. */
function installPeers(directory: string, terminal: Terminal): void {
  terminal.note(`Installing the peers into ${directory} (once, about 300 MB) ...`);
  const {status} = spawnSync('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund'], {
    cwd: directory,
    // npm's own output must not reach the report.
    stdio: ['ignore', 2, 2],
    // npm is a script for the shell there.
    shell: process.platform === 'win32',
  });
  if (status === 0) return;
  throw new CliError(
    'The peers could not be installed; npm said why.',
    `cd ${directory} && npm ci --ignore-scripts`,
  );
}

/** How one operator takes a case. */
interface OrtForm {
  readonly name: string;
  readonly node: OnnxNode;
  readonly inputs: readonly OnnxValue[];
  readonly output: OnnxValue;
  /** Whether q, k, v and o are [1, tokens, heads * head_dim] instead of [1, heads, tokens, head_dim]. */
  readonly tokensFirst: boolean;
  /** Whether it takes fewer key/value heads than query heads; else they are repeated before the clock starts. */
  readonly groups: boolean;
}

/** The operators that compute the case: the fused ones of Microsoft's domain, and ONNX' own. */
export function ortForms({heads, kvHeads, headDim, tokens, causal}: BenchCase): OrtForm[] {
  const packedHeads = (count: number): number[] => [1, tokens, count * headDim];
  const apartHeads = (count: number): number[] => [1, count, tokens, headDim];
  const packed = packedHeads(heads);
  const apart = apartHeads(heads);
  const names = ['query', 'key', 'value'];
  const operands = (dims: readonly number[], kvDims = dims): OnnxValue[] =>
    names.map((name) => ({name, type: 'float32', dims: name === 'query' ? dims : kvDims}));
  const output = (dims: readonly number[]): OnnxValue => ({name: 'output', type: 'float32', dims});
  const forms: OrtForm[] = [
    {
      name: 'onnxruntime-mha',
      node: {
        operator: 'MultiHeadAttention',
        domain: 'com.microsoft',
        inputs: names,
        outputs: ['output'],
        attributes: {num_heads: {int: heads}, unidirectional: {int: causal ? 1 : 0}},
      },
      inputs: operands(packed),
      output: output(packed),
      tokensFirst: true,
      groups: false,
    },
    {
      name: 'onnxruntime-attention',
      node: {
        operator: 'Attention',
        domain: '',
        inputs: names,
        outputs: ['output'],
        attributes: {is_causal: {int: causal ? 1 : 0}},
      },
      inputs: operands(apart, apartHeads(kvHeads)),
      output: output(apart),
      tokensFirst: false,
      groups: true,
    },
  ];
  if (causal) {
    // Always causal. No past: those two inputs are left out, the lengths say that all tokens are new.
    forms.push({
      name: 'onnxruntime-gqa',
      node: {
        operator: 'GroupQueryAttention',
        domain: 'com.microsoft',
        inputs: [...names, '', '', 'last_token', 'total_tokens'],
        outputs: ['output', 'present_key', 'present_value'],
        attributes: {num_heads: {int: heads}, kv_num_heads: {int: kvHeads}},
      },
      inputs: [
        ...operands(packed, packedHeads(kvHeads)),
        {name: 'last_token', type: 'int32', dims: [1]},
        {name: 'total_tokens', type: 'int32', dims: [1]},
      ],
      output: output(packed),
      tokensFirst: true,
      groups: true,
    });
  }
  return forms;
}

/** One contender for each operator. */
export async function ortContenders(
  ort: Ort,
  c: BenchCase,
  inputs: BenchInputs,
  threads: number,
): Promise<Contender[]> {
  const contenders: Contender[] = [];
  for (const form of ortForms(c))
    contenders.push(await ortContender(ort, form, c, inputs, threads));
  return contenders;
}

async function ortContender(
  ort: Ort,
  {name, node, inputs: values, output, tokensFirst, groups}: OrtForm,
  c: BenchCase,
  inputs: BenchInputs,
  threads: number,
): Promise<Contender> {
  const session = await ort.InferenceSession.create(encodeOnnxModel(node, values, [output]), {
    executionProviders: ['cpu'],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    // Warnings of the library would only interleave with the table.
    logSeverityLevel: 3,
  });
  const arrange = (x: Float32Array, heads: number): Float32Array =>
    tokensFirst ? headsToTokens(x, {...c, heads}) : x;
  const keys = (x: Float32Array): Float32Array =>
    groups ? arrange(x, c.kvHeads) : arrange(repeatHeads(x, c), c.heads);
  const numbers: Readonly<Record<string, Float32Array | Int32Array>> = {
    query: arrange(inputs.q, c.heads),
    key: keys(inputs.k),
    value: keys(inputs.v),
    last_token: Int32Array.of(c.tokens - 1),
    total_tokens: Int32Array.of(c.tokens),
  };
  const feeds = Object.fromEntries(
    values.map((value) => {
      const data = numbers[value.name];
      if (data === undefined) throw new Error(`no input ${value.name}`);
      return [value.name, new ort.Tensor(value.type, data, value.dims)];
    }),
  );
  return {
    engine: `peer:${name}`,
    precision: 'float32',
    // Each session has a pool of its own, whose threads spin for a while after a run.
    group: name,
    run: async () => void (await session.run(feeds)),
    output: async () => {
      const data = (await session.run(feeds))['output']?.data ?? new Float32Array(0);
      return tokensFirst ? tokensToHeads(data, c) : data;
    },
    dispose: () => session.release(),
  };
}
