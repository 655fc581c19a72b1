/**
 * Kernels for every backend without one of its own: a composition of tfjs ops, or an engine on host copies
 * of the tensors where the table of engine_table.ts says so.
 */
import {
  getBackend,
  type KernelBackend,
  type KernelConfig,
  type TensorInfo,
} from '@tensorflow/tfjs-core';
import {platform} from '#platform';
import {attentionByOps} from '../engines/composition/attention_by_ops.js';
import {gradientsByOps} from '../engines/composition/gradients_by_ops.js';
import {
  forwardAttributes,
  gradientAttributes,
  lseShape,
  outputShape,
  SageAttention,
  SageAttentionGrad,
  type SageAttentionGradInputs,
  type SageAttentionInputs,
} from './kernel_names.js';
import {bufferEngine, runBackward, runForward} from './run_engine.js';

/** The forward kernel for the backend registered as `backendName`. */
export function sageAttentionOtherConfig(backendName: string): KernelConfig {
  return {
    kernelName: SageAttention,
    backendName,
    kernelFunc({inputs, backend, attrs}) {
      const {problem} = forwardAttributes(attrs);
      const given = inputs as SageAttentionInputs;
      const engine = bufferEngine(getBackend(), problem);
      if (engine === null) return attentionByOps(given, problem);
      const host = hostOf(backend);
      const {q, k, v, mask} = given;
      const {batch, qHeads, qLen, vDim, wantLse} = problem;
      const rows = batch * qHeads * qLen;
      const o = platform.allocateFloats(rows * vDim);
      const lse = wantLse ? platform.allocateFloats(rows) : null;
      runForward(engine, problem, {
        q: host.read(q),
        k: host.read(k),
        v: host.read(v),
        mask: mask === undefined ? null : host.readMask(mask),
        o,
        lse,
      });
      const output = host.write(o, outputShape(q, problem));
      return lse === null ? [output] : [output, host.write(lse, lseShape(q, problem))];
    },
  };
}

/** The gradient kernel for the backend registered as `backendName`. */
export function sageAttentionGradOtherConfig(backendName: string): KernelConfig {
  return {
    kernelName: SageAttentionGrad,
    backendName,
    kernelFunc({inputs, backend, attrs}) {
      const {problem, wantMaskGradient} = gradientAttributes(attrs);
      const given = inputs as SageAttentionGradInputs;
      const engine = bufferEngine(getBackend(), problem);
      if (engine === null) return gradientsByOps(given, problem, wantMaskGradient);
      const host = hostOf(backend);
      const {q, k, v, mask, o, lse, dO, dLse} = given;
      const dQ = floatsLike(q);
      const dK = floatsLike(k);
      const dV = floatsLike(v);
      const dMask = wantMaskGradient && mask !== undefined ? floatsLike(mask) : null;
      runBackward(engine, problem, {
        q: host.read(q),
        k: host.read(k),
        v: host.read(v),
        mask: mask === undefined ? null : host.readMask(mask),
        o: host.read(o),
        lse: host.read(lse),
        dO: host.read(dO),
        dLse: dLse === undefined ? null : host.read(dLse),
        dQ,
        dK,
        dV,
        dMask,
      });
      const gradients = [host.write(dQ, q.shape), host.write(dK, k.shape), host.write(dV, v.shape)];
      if (dMask !== null && mask !== undefined) gradients.push(host.write(dMask, mask.shape));
      return gradients;
    },
  };
}

function floatsLike({shape}: TensorInfo): Float32Array {
  return platform.allocateFloats(shape.reduce((a, b) => a * b, 1));
}

/** Host copies through the two methods that every tfjs backend has. */
function hostOf(backend: unknown) {
  const {readSync, write} = backend as KernelBackend;
  return {
    read: ({dataId}: TensorInfo) => readSync.call(backend, dataId) as Float32Array,
    readMask: ({dataId}: TensorInfo) => readSync.call(backend, dataId) as Float32Array | Uint8Array,
    write: (values: Float32Array, shape: number[]): TensorInfo => ({
      dataId: write.call(backend, values, shape, 'float32'),
      shape,
      dtype: 'float32',
    }),
  };
}
