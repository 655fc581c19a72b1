/** Kernels for backend `cpu`: engines read the tensors' own TypedArrays and the results become tensors as they are. */
import type {KernelBackend, KernelConfig, TensorInfo} from '@tensorflow/tfjs-core';
import {platform} from '#platform';
import type {Engine} from '../engines/engine.js';
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

/** The two methods of MathBackendCPU that the kernels use; the class itself is not a dependency. */
export interface CpuBackend {
  readSync(dataId: object): Float32Array | Uint8Array;
  makeTensorInfo(shape: number[], dtype: 'float32', values: Float32Array): TensorInfo;
}

const BACKEND = 'cpu';

export const sageAttentionCpuConfig: KernelConfig = {
  kernelName: SageAttention,
  backendName: BACKEND,
  kernelFunc({inputs, backend, attrs}) {
    const {problem} = forwardAttributes(attrs);
    const engine = bufferEngine(BACKEND, problem);
    if (engine === null) return attentionByOps(inputs as SageAttentionInputs, problem);
    return forwardOnCpu(engine, inputs as SageAttentionInputs, asCpu(backend), problem);
  },
};

export const sageAttentionGradCpuConfig: KernelConfig = {
  kernelName: SageAttentionGrad,
  backendName: BACKEND,
  kernelFunc({inputs, backend, attrs}) {
    const {problem, wantMaskGradient} = gradientAttributes(attrs);
    const engine = bufferEngine(BACKEND, problem);
    const given = inputs as SageAttentionGradInputs;
    if (engine === null) return gradientsByOps(given, problem, wantMaskGradient);
    return gradientsOnCpu(engine, given, asCpu(backend), problem, wantMaskGradient);
  },
};

function asCpu(backend: unknown): CpuBackend {
  return backend as KernelBackend & CpuBackend;
}

function floats(backend: CpuBackend, tensor: TensorInfo): Float32Array {
  return backend.readSync(tensor.dataId) as Float32Array;
}

function forwardOnCpu(
  engine: Engine,
  {q, k, v, mask}: SageAttentionInputs,
  backend: CpuBackend,
  problem: Parameters<Engine['forward']>[0],
): TensorInfo[] {
  const {batch, qHeads, qLen, vDim, wantLse} = problem;
  const rows = batch * qHeads * qLen;
  const o = platform.allocateFloats(rows * vDim);
  const lse = wantLse ? platform.allocateFloats(rows) : null;
  runForward(engine, problem, {
    q: floats(backend, q),
    k: floats(backend, k),
    v: floats(backend, v),
    mask: mask === undefined ? null : backend.readSync(mask.dataId),
    o,
    lse,
  });
  const output = backend.makeTensorInfo(outputShape(q, problem), 'float32', o);
  if (lse === null) return [output];
  return [output, backend.makeTensorInfo(lseShape(q, problem), 'float32', lse)];
}

function gradientsOnCpu(
  engine: Engine,
  {q, k, v, mask, o, lse, dO, dLse}: SageAttentionGradInputs,
  backend: CpuBackend,
  problem: Parameters<Engine['backward']>[0],
  wantMaskGradient: boolean,
): TensorInfo[] {
  const wanted = wantMaskGradient && mask !== undefined ? [q, k, v, mask] : [q, k, v];
  const gradients = wanted.map(({shape}) =>
    platform.allocateFloats(shape.reduce((a, b) => a * b, 1)),
  );
  const [dQ, dK, dV, dMask] = gradients as [
    Float32Array,
    Float32Array,
    Float32Array,
    Float32Array?,
  ];
  runBackward(engine, problem, {
    q: floats(backend, q),
    k: floats(backend, k),
    v: floats(backend, v),
    mask: mask === undefined ? null : backend.readSync(mask.dataId),
    o: floats(backend, o),
    lse: floats(backend, lse),
    dO: floats(backend, dO),
    dLse: dLse === undefined ? null : floats(backend, dLse),
    dQ,
    dK,
    dV,
    dMask: dMask ?? null,
  });
  return gradients.map((values, i) =>
    backend.makeTensorInfo(wanted[i]?.shape ?? [], 'float32', values),
  );
}
