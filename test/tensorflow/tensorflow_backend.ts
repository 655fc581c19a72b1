/** A real TensorFlow under @tensorflow/tfjs-node for the tests of this folder: what `npm run test:tensorflow` prepares. */
import {join} from 'node:path';
import type * as Tfjs from '@tensorflow/tfjs';
import {tensorflowFolder} from '../../scripts/tensorflow_folder.cjs';

process.env['SAGE_TENSORFLOW_DIR'] ??= tensorflowFolder;

/** tfjs-node, whose backend `tensorflow` is then active. The same module at every call. */
export function loadTensorflowBackend(): typeof Tfjs {
  /* eslint-disable @typescript-eslint/no-require-imports -- the order of loading matters */
  require('../../src/tensorflow/load');
  return require('@tensorflow/tfjs-node') as typeof Tfjs;
  /* eslint-enable @typescript-eslint/no-require-imports */
}

/** The same as source text of a CommonJS script, for child processes: an expression whose value is tfjs-node. */
export function loadTensorflowSource(): string {
  const root = join(__dirname, '..', '..');
  const loader = join(root, 'dist', 'cjs', 'src', 'tensorflow', 'load.js');
  const tfjsNode = join(root, 'node_modules', '@tensorflow', 'tfjs-node');
  return `(require(${JSON.stringify(loader)}), require(${JSON.stringify(tfjsNode)}))`;
}
