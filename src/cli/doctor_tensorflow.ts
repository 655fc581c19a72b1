/**
 * What `doctor` says about TensorFlow under tfjs-node: where the binding comes from, TensorFlow's version and devices, and
 * whether attention runs in it. Loading TensorFlow may end a process, so that is tried in one of its own.
 */
import {existsSync} from 'node:fs';
import {platform} from '#platform';
import type {EngineChoiceRow} from '../engines/choose_engine.js';
import type {TensorflowInfo} from '../runtime/info.js';
import {findCompiler} from '../tensorflow/compile_binding.js';
import {findTensorflowFolder, projectFolder} from '../tensorflow/find_folder.js';
import {describeCuda} from '../tensorflow/gpu_set_up.js';
import type {CudaRecord} from '../tensorflow/manifest.js';
import {findNodeHeaders} from '../tensorflow/node_headers.js';
import {openPrepared, type PreparedTensorflow} from '../tensorflow/redirect_binding.js';
import {isProgram} from '../tensorflow/run_program.js';
import {SET_UP_COMMAND} from '../tensorflow/tensorflow_errors.js';
import {findTfjsNode, stockBinding, type TfjsNodePackage} from '../tensorflow/tfjs_node_package.js';
import {cureFor, reasonIn} from '../tensorflow/verify_folder.js';
import {type Check, guarded} from './doctor_checks.js';

/** The facts for `--json`. */
export interface TensorflowReport {
  /** The installed package; null when there is none. */
  readonly tfjsNode: {
    readonly name: string;
    readonly version: string;
    readonly folder: string;
  } | null;
  /** Where tfjs-node's binding comes from. */
  readonly source: 'prepared folder' | 'own binding' | 'missing';
  /** The prepared folder or the binding's file; null when it is missing. */
  readonly path: string | null;
  /** CUDA libraries of a prepared folder made with `--gpu`. */
  readonly cuda: CudaRecord | null;
  /** What a process of its own found; null when TensorFlow did not load. */
  readonly trial: TensorflowTrial | null;
}

export interface TensorflowTrial {
  /** Version of TensorFlow. */
  readonly version: string;
  /** Whether it computes on a GPU. */
  readonly gpu: boolean;
  /** Largest difference of a small `exact` attention on backend `tensorflow` from tfjs ops there. */
  readonly maxError: number;
  /** `getSageAttentionInfo().tensorflow` after that attention. */
  readonly info: TensorflowInfo;
  /** What computes on backend `tensorflow` while TensorFlow is loaded. */
  readonly choices: readonly EngineChoiceRow[];
}

/** Loading takes about a second; a GPU's first start may take a minute. */
const TIMEOUT_MS = 180_000;

/** Float32 products in another order. */
const LARGEST_ERROR = 1e-5;

/** Where a loaded NVIDIA driver shows itself. */
const DRIVER_FILE = '/proc/driver/nvidia/version';

const INSTALL = 'npm install --ignore-scripts @tensorflow/tfjs-node@4.22.0';

export async function checkTensorflow(): Promise<{report: TensorflowReport; checks: Check[]}> {
  const tfjsNode = findTfjsNode([projectFolder(), platform.packageRoot ?? process.cwd()]);
  const none: TensorflowReport = {
    tfjsNode: tfjsNode && {
      name: tfjsNode.name,
      version: tfjsNode.version,
      folder: tfjsNode.folder,
    },
    source: 'missing',
    path: null,
    cuda: null,
    trial: null,
  };
  if (tfjsNode === null) {
    const message = `not installed, so there is no backend 'tensorflow' (${INSTALL}, then ${SET_UP_COMMAND})`;
    return {report: none, checks: [{name: 'tfjs-node', status: 'ok', message, fix: null}]};
  }
  let report = none;
  let trial: {result: TensorflowTrial | null; log: string} = {result: null, log: ''};
  const binding = await guarded('tfjs-node', () => {
    const found = locate(tfjsNode);
    report = {...none, ...found.report};
    return found.check;
  });
  const checks = [binding];
  if (binding.status !== 'ok') checks.push(...(await missingTools()));
  if (binding.status === 'ok') {
    checks.push(
      await guarded('TensorFlow', () => {
        trial = tryTensorflow(tfjsNode, report);
        return describeTrial(trial.result, trial.log);
      }),
    );
  }
  if (trial.result !== null) {
    report = {...report, trial: trial.result};
    checks.push(describeOp(trial.result));
    if (report.cuda !== null) checks.push(describeGpu(report.cuda, trial.result, trial.log));
  }
  return {report, checks};
}

/** What `setup-tensorflow` would stop at, told before it is run. */
async function missingTools(): Promise<Check[]> {
  const name = 'setup-tensorflow';
  const needs = await guarded(name, async () => {
    await findCompiler();
    findNodeHeaders(projectFolder());
    return {name, status: 'ok', message: 'has a compiler and node_api.h', fix: null};
  });
  if (needs.status !== 'ok') return [{...needs, status: 'warning'}];
  if (await isProgram('python3')) return [];
  const message = 'there is no python3 on the path, which fetches the wheel';
  const fix = 'apt-get install python3-pip, or give the wheel as --wheel FILE';
  return [{name, status: 'warning', message, fix}];
}

/** The prepared folder, tfjs-node's own binding, or neither. Throws where the folder is damaged or does not fit. */
function locate(tfjsNode: TfjsNodePackage): {report: Partial<TensorflowReport>; check: Check} {
  const {folder, searched} = findTensorflowFolder();
  const name = 'tfjs-node';
  const what = `${tfjsNode.version} in ${tfjsNode.folder}`;
  if (folder !== null) {
    const prepared: PreparedTensorflow = openPrepared(folder);
    const {manifest} = prepared;
    const compiled = manifest.tfjsNode.version;
    if (compiled !== tfjsNode.version) {
      const message = `${what}, but the binding in ${folder} is that of ${compiled}`;
      return {
        report: {source: 'prepared folder', path: folder, cuda: manifest.cuda},
        check: {name, status: 'failed', message, fix: SET_UP_COMMAND},
      };
    }
    return {
      report: {source: 'prepared folder', path: folder, cuda: manifest.cuda},
      check: {
        name,
        status: 'ok',
        message: `${what}; binding and TensorFlow ${manifest.tensorflow} of ${folder}`,
        fix: null,
      },
    };
  }
  const own = stockBinding(tfjsNode);
  if (own !== null) {
    return {
      report: {source: 'own binding', path: own},
      check: {name, status: 'ok', message: `${what}; its own binding ${own}`, fix: null},
    };
  }
  return {
    report: {source: 'missing', path: null},
    check: {
      name,
      status: 'warning',
      message: `${what} has no native binding, and there is no prepared TensorFlow in ${searched.join(', ')}`,
      fix: SET_UP_COMMAND,
    },
  };
}

const MARK = 'sage-doctor:';

/** argv: the loader or '', tfjs-node, this package. */
const SCRIPT = `
const [, loader, tfjsNode, sagePackage] = process.argv;
if (loader) require(loader);
const tf = require(tfjsNode);
const sage = require(sagePackage);
const [q, k, v] = [1, 2, 3].map((seed) => tf.randomNormal([2, 37, 16], 0, 1, 'float32', seed));
const expected = tf.matMul(tf.softmax(tf.mul(tf.matMul(q, k, false, true), 1 / 4)), v).dataSync();
const actual = sage.sageAttention(q, k, v, {precision: 'exact'}).dataSync();
process.stdout.write(${JSON.stringify(MARK)} + JSON.stringify({
  version: String(tf.backend().binding.TF_Version),
  gpu: tf.backend().isUsingGpuDevice === true,
  maxError: Math.max(...actual.map((x, i) => Math.abs(x - expected[i]))),
  info: sage.getSageAttentionInfo().tensorflow,
  choices: sage.getSageAttentionInfo().choices.filter(({backend}) => backend === 'tensorflow'),
}) + '\\n');`;

/** @throws Error with what the process said; `hint` says what to do about it. */
function tryTensorflow(
  tfjsNode: TfjsNodePackage,
  {source, path}: TensorflowReport,
): {result: TensorflowTrial; log: string} {
  const root = platform.packageRoot;
  const compiled = (...file: string[]): string =>
    platform.joinPath(root ?? '', 'dist', 'cjs', 'src', ...file);
  if (root === null || !existsSync(compiled('index.js'))) {
    throw Object.assign(new Error('not tried: this package is not compiled'), {
      hint: 'npm run build',
    });
  }
  const prepared = source === 'prepared folder';
  const loader = prepared ? compiled('tensorflow', 'load.js') : '';
  const child = platform.runNode(['-e', SCRIPT, loader, tfjsNode.main, compiled('index.js')], {
    timeoutMs: TIMEOUT_MS,
    environment: {
      ...(prepared && path !== null ? {SAGE_TENSORFLOW_DIR: path} : {}),
      NODE_OPTIONS: '',
      // Which library could not be opened is told at this level.
      TF_CPP_MIN_LOG_LEVEL: '0',
    },
  });
  const refuse = (what: string): Error =>
    Object.assign(new Error(what), {hint: cureFor(what, SET_UP_COMMAND)});
  if (child === null || child.timedOut) throw refuse(`no answer within ${TIMEOUT_MS / 1000} s`);
  if (child.signal !== null) throw refuse(`it ended the process with ${child.signal}`);
  const line = child.stdout.split('\n').find((text) => text.startsWith(MARK));
  if (child.status !== 0 || line === undefined) throw refuse(reasonIn(child.stderr));
  return {result: JSON.parse(line.slice(MARK.length)) as TensorflowTrial, log: child.stderr};
}

function describeTrial(trial: TensorflowTrial | null, log: string): Check {
  const name = 'TensorFlow';
  if (trial === null) return {name, status: 'failed', message: log, fix: SET_UP_COMMAND};
  const {version, gpu, maxError} = trial;
  // Written so that a NaN fails.
  if (!(maxError <= LARGEST_ERROR)) {
    const message = `${version} computes attention with an error of ${maxError}`;
    return {name, status: 'failed', message, fix: `Please report this output.`};
  }
  const message = `${version} works on the ${gpu ? 'GPU' : 'CPU'}: attention within ${maxError.toExponential(1)}`;
  return {name, status: 'ok', message, fix: null};
}

function describeOp({info}: TensorflowTrial): Check {
  const name = 'TensorFlow op';
  const {op, reason, device, devices, streamMode} = info;
  const stream = streamMode === null ? '' : `, stream mode ${streamMode}`;
  const message =
    op === 'registered'
      ? `registered for ${devices.join(' and ')}, runs on ${device ?? 'none'}${stream}: ${reason}`
      : `not registered, so q, k and v are copied: ${reason}`;
  return {name, status: op === 'registered' ? 'ok' : 'warning', message, fix: null};
}

/** Why a GPU build does not compute on a GPU, as far as this machine and TensorFlow's log tell. */
function describeGpu(cuda: CudaRecord, {gpu}: TensorflowTrial, log: string): Check {
  const name = 'TensorFlow GPU';
  const libraries = describeCuda(cuda);
  if (gpu) return {name, status: 'ok', message: libraries, fix: null};
  const {why, fix} = whyNoGpu(cuda, log);
  return {name, status: 'warning', message: `not used: ${why} (${libraries})`, fix};
}

export function whyNoGpu(cuda: CudaRecord, log: string): {why: string; fix: string} {
  if (!existsSync(DRIVER_FILE)) {
    return {
      why: 'there is no NVIDIA driver',
      fix: 'Install the driver (https://www.nvidia.com/drivers); in a container, start it with the NVIDIA runtime.',
    };
  }
  if (cuda.missing.length > 0) {
    return {
      why: `missing: ${cuda.missing.join(', ')}`,
      fix: `pip install 'tensorflow[and-cuda]==2.21.0', then ${SET_UP_COMMAND} --gpu --site-packages <its site-packages>`,
    };
  }
  const told = log
    .split('\n')
    .find((line) => /Could not|Cannot dlopen|failed call to cu|CUDA_ERROR/.test(line));
  return {
    why: told?.replace(/^.*?\] /, '').trim() ?? 'TensorFlow does not say why',
    fix: 'Check nvidia-smi and CUDA_VISIBLE_DEVICES; TensorFlow 2.21 needs a driver for CUDA 12.5 (555) or newer.',
  };
}
