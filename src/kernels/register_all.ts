/** Registers the kernels: for `cpu`, `wasm` and `tensorflow` at import, for any other backend at the first call on it. */
import * as tf from '@tensorflow/tfjs-core';
import {SageAttentionError} from '../runtime/errors.js';
import {SageAttention, SageAttentionGrad} from './kernel_names.js';
import {sageAttentionCpuConfig, sageAttentionGradCpuConfig} from './SageAttention.cpu.js';
import {sageAttentionGradOtherConfig, sageAttentionOtherConfig} from './SageAttention.other.js';
import {
  sageAttentionGradTensorflowConfig,
  sageAttentionTensorflowConfig,
} from './SageAttention.tensorflow.js';
import {sageAttentionGradWasmConfig, sageAttentionWasmConfig} from './SageAttention.wasm.js';

/** tfjs warns about a second registration, as when both the ESM and the CommonJS build are loaded. */
function registerOnce(config: tf.KernelConfig): void {
  if (tf.getKernel(config.kernelName, config.backendName) === undefined) tf.registerKernel(config);
}

/** Kernels of the backends that this package knows; the backend itself need not be loaded. */
export function registerSageKernels(): void {
  registerOnce(sageAttentionCpuConfig);
  registerOnce(sageAttentionGradCpuConfig);
  registerOnce(sageAttentionWasmConfig);
  registerOnce(sageAttentionGradWasmConfig);
  registerOnce(sageAttentionTensorflowConfig);
  registerOnce(sageAttentionGradTensorflowConfig);
}

const readyBackends = new Set<string>();

/** Makes sure that the active backend has both kernels; other packages' kernels of these names are left alone. */
export function ensureKernels(operation: string): void {
  const backend = tf.getBackend() || initialiseBackend(operation);
  if (readyBackends.has(backend)) return;
  if (tf.getKernel(SageAttention, backend) === undefined) {
    tf.registerKernel(sageAttentionOtherConfig(backend));
  }
  if (tf.getKernel(SageAttentionGrad, backend) === undefined) {
    tf.registerKernel(sageAttentionGradOtherConfig(backend));
  }
  readyBackends.add(backend);
}

function initialiseBackend(operation: string): string {
  try {
    tf.backend();
    return tf.getBackend();
  } catch (cause) {
    throw new SageAttentionError({
      code: 'no-backend',
      argument: null,
      message: `${operation}: tfjs has no backend that is ready.`,
      hint: `Import one, such as '@tensorflow/tfjs-backend-wasm', and await tf.ready().`,
      cause,
    });
  }
}
