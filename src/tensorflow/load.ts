/**
 * `tfjs-sage-attention/tensorflow`: after this import, `@tensorflow/tfjs-node` (and tfjs-node-gpu) run on the TensorFlow
 * that `npx tfjs-sage-attention setup-tensorflow` prepared. node_modules stay as they are.
 *
 * ```js
 * require('tfjs-sage-attention/tensorflow');          // or: node -r tfjs-sage-attention/tensorflow app.js
 * const tf = require('@tensorflow/tfjs-node');
 * ```
 *
 * The folder is SAGE_TENSORFLOW_DIR, or `.sage-tensorflow` found from the working directory upwards. Under jest: list this
 * entry in `setupFiles`. Each worker_threads worker imports it for itself.
 * Throws a SageAttentionError: `tensorflow-not-set-up`, `tensorflow-damaged`, `tensorflow-mismatch` or
 * `tensorflow-already-loaded`.
 */
import {findTensorflowFolder} from './find_folder.js';
import {openPrepared, redirectTfjsNode, type PreparedTensorflow} from './redirect_binding.js';
import {notSetUp} from './tensorflow_errors.js';

export type {CudaRecord, FileRecord, TensorflowManifest} from './manifest.js';
export type {PreparedTensorflow} from './redirect_binding.js';

function load(): PreparedTensorflow {
  const {folder, searched, fromEnvironment} = findTensorflowFolder();
  if (folder === null) {
    throw notSetUp(
      fromEnvironment
        ? `SAGE_TENSORFLOW_DIR names ${searched[0]}, which the set-up did not make or did not finish.`
        : `no prepared TensorFlow in ${searched.join(', ')}.`,
    );
  }
  const found = openPrepared(folder);
  redirectTfjsNode(found);
  return found;
}

/** The folder that tfjs-node is given, and its manifest. */
export const preparedTensorflow: PreparedTensorflow = load();
