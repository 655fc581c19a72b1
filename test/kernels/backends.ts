/** Backends for the tests: cpu, wasm, and a copy of cpu under another name, which has no kernels of ours. */
// tfjs-core registers no gradients of its own ops; the union package does.
import '@tensorflow/tfjs';
import {MathBackendCPU} from '@tensorflow/tfjs-backend-cpu';
import '@tensorflow/tfjs-backend-wasm';
import * as tf from '@tensorflow/tfjs-core';

/** Like a backend that this package does not know: tfjs' own kernels, none of ours. */
export const UNKNOWN_BACKEND = 'unknown';

/** Makes `name` the active backend. */
export async function useBackend(name: string): Promise<void> {
  if (name === UNKNOWN_BACKEND && tf.findBackend(UNKNOWN_BACKEND) === null) {
    tf.registerBackend(UNKNOWN_BACKEND, () => new MathBackendCPU());
    for (const kernel of tf.getKernelsForBackend('cpu')) {
      if (kernel.kernelName.startsWith('SageAttention')) continue;
      tf.registerKernel({...kernel, backendName: UNKNOWN_BACKEND});
    }
  }
  if (!(await tf.setBackend(name))) throw new Error(`backend ${name} does not start`);
  await tf.ready();
}
