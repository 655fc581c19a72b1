/** Whether a folder works: tfjs-node on it, in a process of its own, since a bad binary ends the process. */
import {existsSync} from 'node:fs';
import {platform} from '#platform';
import {setUpFailed} from './tensorflow_errors.js';
import type {TfjsNodePackage} from './tfjs_node_package.js';

export interface Verification {
  /** Version of TensorFlow as the binding tells it. */
  readonly tensorflow: string;
  readonly backend: string;
  /** Whether TensorFlow computes on a GPU. */
  readonly gpu: boolean;
  /** Milliseconds until tfjs-node was loaded. */
  readonly loadMs: number;
}

/** Loading takes about a second; a GPU's first start may take a minute. */
const TIMEOUT_MS = 180_000;

const MARK = 'sage-tensorflow:';

const SCRIPT = `
const start = performance.now();
require(process.argv[1]);
const tf = require(process.argv[2]);
const loadMs = Math.round(performance.now() - start);
const product = tf.matMul([[1, 2], [3, 4]], [[5, 6], [7, 8]]).dataSync();
const binding = tf.backend().binding;
process.stdout.write(${JSON.stringify(MARK)} + JSON.stringify({
  tensorflow: binding.TF_Version,
  backend: tf.getBackend(),
  gpu: tf.backend().isUsingGpuDevice === true,
  loadMs,
  product: [...product],
}) + '\\n');`;

/** [[1, 2], [3, 4]] times [[5, 6], [7, 8]]. */
const PRODUCT = [19, 22, 43, 50];

/**
 * @param version What TensorFlow must call itself.
 * @throws SageAttentionError `tensorflow-set-up-failed` with what the process said or how it ended.
 */
export function verifyFolder(
  folder: string,
  tfjsNode: TfjsNodePackage,
  version: string,
): Verification {
  const loader = loaderFile();
  const child = platform.runNode(['-e', SCRIPT, loader, tfjsNode.main], {
    timeoutMs: TIMEOUT_MS,
    environment: {SAGE_TENSORFLOW_DIR: folder, TF_CPP_MIN_LOG_LEVEL: '2', NODE_OPTIONS: ''},
  });
  const refuse = (what: string) =>
    setUpFailed(
      `TensorFlow does not work here: ${what}`,
      cureFor(what, 'npx tfjs-sage-attention doctor tells more.'),
      null,
    );
  if (child === null || child.timedOut) throw refuse(`no answer within ${TIMEOUT_MS / 1000} s.`);
  if (child.signal !== null) throw refuse(`it ended the process with ${child.signal}.`);
  const line = child.stdout.split('\n').find((text) => text.startsWith(MARK));
  if (child.status !== 0 || line === undefined) throw refuse(reasonIn(child.stderr));
  const {product, ...facts} = JSON.parse(line.slice(MARK.length)) as Verification & {
    product: number[];
  };
  if (product.join() !== PRODUCT.join()) throw refuse(`matMul gave ${product.join()}.`);
  if (facts.tensorflow !== version) {
    throw refuse(`it calls itself ${facts.tensorflow}, expected ${version}.`);
  }
  return facts;
}

/** The loader as compiled: the child is plain Node. */
export function loaderFile(): string {
  const {packageRoot} = platform;
  const file =
    packageRoot === null
      ? ''
      : platform.joinPath(packageRoot, 'dist', 'cjs', 'src', 'tensorflow', 'load.js');
  if (existsSync(file)) return file;
  throw setUpFailed('this package is not compiled (dist is missing).', 'npm run build');
}

/** The line of an uncaught error that says what happened. */
export function reasonIn(stderr: string): string {
  const lines = stderr.trim().split('\n');
  return lines.find((line) => /^\w*Error\b.*: /.test(line)) ?? lines.at(-1) ?? 'no reason given';
}

/** What helps against the common reasons. */
export function cureFor(what: string, otherwise: string): string {
  if (/GLIBC_|GLIBCXX_/.test(what)) {
    return 'This system is older than TensorFlow needs (glibc 2.27, libstdc++ of GCC 8) or than the compiler; take a newer one.';
  }
  if (/SIGILL/.test(what)) return 'This processor lacks AVX, which TensorFlow is built for.';
  return otherwise;
}
