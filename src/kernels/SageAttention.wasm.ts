/**
 * Kernels for backend `wasm`: engines read and write the wasm heap in place.
 * Allocation may grow the heap, which detaches every view made before; so inputs are first brought into the heap,
 * then outputs allocated, and only then are views taken.
 */
import type {KernelBackend, KernelConfig, TensorInfo} from '@tensorflow/tfjs-core';
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

/** The methods of BackendWasm that the kernels use; the class itself is not a dependency. */
export interface WasmBackend {
  makeOutput(shape: number[], dtype: 'float32'): TensorInfo;
  typedArrayFromHeap(tensor: TensorInfo): Float32Array | Uint8Array;
  getMemoryOffset(dataId: object): number;
  disposeData(dataId: object): boolean;
}

const BACKEND = 'wasm';

export const sageAttentionWasmConfig: KernelConfig = {
  kernelName: SageAttention,
  backendName: BACKEND,
  kernelFunc({inputs, backend, attrs}) {
    const {problem} = forwardAttributes(attrs);
    const engine = bufferEngine(BACKEND, problem);
    const given = inputs as SageAttentionInputs;
    if (engine === null) return attentionByOps(given, problem);
    const heap = asWasm(backend);
    const {q, k, v, mask} = given;
    bringIn(heap, given);
    const o = heap.makeOutput(outputShape(q, problem), 'float32');
    const lse = problem.wantLse ? heap.makeOutput(lseShape(q, problem), 'float32') : null;
    const outputs = lse === null ? [o] : [o, lse];
    return disposingOnFailure(heap, outputs, () =>
      runForward(engine, problem, {
        q: floats(heap, q),
        k: floats(heap, k),
        v: floats(heap, v),
        mask: mask === undefined ? null : heap.typedArrayFromHeap(mask),
        o: floats(heap, o),
        lse: lse === null ? null : floats(heap, lse),
      }),
    );
  },
};

export const sageAttentionGradWasmConfig: KernelConfig = {
  kernelName: SageAttentionGrad,
  backendName: BACKEND,
  kernelFunc({inputs, backend, attrs}) {
    const {problem, wantMaskGradient} = gradientAttributes(attrs);
    const engine = bufferEngine(BACKEND, problem);
    const given = inputs as SageAttentionGradInputs;
    if (engine === null) return gradientsByOps(given, problem, wantMaskGradient);
    const heap = asWasm(backend);
    const {q, k, v, mask, o, lse, dO, dLse} = given;
    bringIn(heap, given);
    const dQ = heap.makeOutput(q.shape, 'float32');
    const dK = heap.makeOutput(k.shape, 'float32');
    const dV = heap.makeOutput(v.shape, 'float32');
    const outputs = [dQ, dK, dV];
    const dMask = wantMaskGradient && mask ? heap.makeOutput(mask.shape, 'float32') : null;
    if (dMask !== null) outputs.push(dMask);
    return disposingOnFailure(heap, outputs, () =>
      runBackward(engine, problem, {
        q: floats(heap, q),
        k: floats(heap, k),
        v: floats(heap, v),
        mask: mask === undefined ? null : heap.typedArrayFromHeap(mask),
        o: floats(heap, o),
        lse: floats(heap, lse),
        dO: floats(heap, dO),
        dLse: dLse === undefined ? null : floats(heap, dLse),
        dQ: floats(heap, dQ),
        dK: floats(heap, dK),
        dV: floats(heap, dV),
        dMask: dMask === null ? null : floats(heap, dMask),
      }),
    );
  },
};

function asWasm(backend: unknown): WasmBackend {
  return backend as KernelBackend & WasmBackend;
}

function floats(heap: WasmBackend, tensor: TensorInfo): Float32Array {
  return heap.typedArrayFromHeap(tensor) as Float32Array;
}

/** Tensors of another backend move into the heap when they are first asked for. */
function bringIn(heap: WasmBackend, inputs: SageAttentionInputs): void {
  for (const name in inputs) {
    const tensor = inputs[name];
    if (tensor !== undefined) heap.getMemoryOffset(tensor.dataId);
  }
}

function disposingOnFailure(
  heap: WasmBackend,
  outputs: TensorInfo[],
  compute: () => void,
): TensorInfo[] {
  try {
    compute();
  } catch (error) {
    for (const {dataId} of outputs) heap.disposeData(dataId);
    throw error;
  }
  return outputs;
}
