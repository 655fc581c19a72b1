/**
 * Kernels for backend `tensorflow`: one op of TensorFlow itself each, so that tensors stay TensorFlow's and nothing is
 * copied. Where there is no such op, or nothing to compute, the kernels for any backend serve (host copies).
 */
import type {KernelConfig, KernelFunc, TensorInfo} from '@tensorflow/tfjs-core';
import {chooseEngine} from '../engines/choose_engine.js';
import {denyTensorflowOp, TENSORFLOW_BACKEND, tensorflowOp} from '../engines/tensorflow_op.js';
import type {AttentionProblem} from '../problem.js';
import type {TensorflowOpNames} from '../runtime/native_addon.js';
import {
  forwardAttributes,
  gradientAttributes,
  SageAttention,
  SageAttentionGrad,
  type SageAttentionGradInputs,
  type SageAttentionInputs,
} from './kernel_names.js';
import {engineFailure, isTrivial} from './run_engine.js';
import {sageAttentionGradOtherConfig, sageAttentionOtherConfig} from './SageAttention.other.js';
import {callTensors, type TensorflowBinding} from './tensorflow_call.js';

/** An output of an op: what `createOutputTensor` takes. */
interface OutputMetadata {
  readonly id: number;
}

/** The parts of NodeJSKernelBackend that the kernels use; the class itself is not a dependency. */
export interface TensorflowBackend {
  readonly binding: TensorflowBinding & {
    executeOp(
      name: string,
      attributes: readonly never[],
      inputs: readonly number[],
      outputs: number,
    ): OutputMetadata[];
  };
  /** Ids of TensorFlow's tensors, which are made where the values still lie in JavaScript. */
  getInputTensorIds(tensors: readonly TensorInfo[]): number[];
  createOutputTensor(metadata: OutputMetadata): TensorInfo;
}

/** Attributes would cost more than the inputs, and a kernel object per value. */
const NO_ATTRIBUTES: readonly never[] = [];

const otherForward = sageAttentionOtherConfig(TENSORFLOW_BACKEND).kernelFunc;
const otherBackward = sageAttentionGradOtherConfig(TENSORFLOW_BACKEND).kernelFunc;

export const sageAttentionTensorflowConfig: KernelConfig = {
  kernelName: SageAttention,
  backendName: TENSORFLOW_BACKEND,
  kernelFunc(call) {
    const {problem} = forwardAttributes(call.attrs);
    const {q, k, v, mask} = call.inputs as SageAttentionInputs;
    return runOp(call, otherForward, problem, (names, callId, backend) => {
      const inputs = mask === undefined ? [q, k, v] : [q, k, v, mask];
      const ids = backend.getInputTensorIds(inputs);
      ids.unshift(callId);
      const plain = mask === undefined;
      return problem.wantLse
        ? backend.binding.executeOp(plain ? names.lse : names.maskedLse, NO_ATTRIBUTES, ids, 2)
        : backend.binding.executeOp(plain ? names.plain : names.masked, NO_ATTRIBUTES, ids, 1);
    });
  },
};

export const sageAttentionGradTensorflowConfig: KernelConfig = {
  kernelName: SageAttentionGrad,
  backendName: TENSORFLOW_BACKEND,
  kernelFunc(call) {
    const {problem, wantMaskGradient} = gradientAttributes(call.attrs);
    const {q, k, v, mask, o, lse, dO, dLse} = call.inputs as SageAttentionGradInputs;
    return runOp(call, otherBackward, problem, (names, callId, backend) => {
      const {binding} = backend;
      const idOf = (tensor: TensorInfo | undefined) =>
        tensor === undefined
          ? callTensors(binding).noneId
          : (backend.getInputTensorIds([tensor])[0] as number);
      const ids = [callId, ...[q, k, v, mask, o, lse, dO, dLse].map(idOf)];
      return wantMaskGradient && mask !== undefined
        ? binding.executeOp(names.gradMask, NO_ATTRIBUTES, ids, 4)
        : binding.executeOp(names.grad, NO_ATTRIBUTES, ids, 3);
    });
  },
};

type Execute = (
  names: TensorflowOpNames,
  callId: number,
  backend: TensorflowBackend,
) => OutputMetadata[];

/** Runs `execute` where the op serves the problem, else `other`. */
function runOp(
  call: Parameters<KernelFunc>[0],
  other: KernelFunc,
  problem: AttentionProblem,
  execute: Execute,
): TensorInfo | TensorInfo[] {
  const choice = chooseEngine(TENSORFLOW_BACKEND, problem.recipe.precision);
  const onGpu = choice.engine === 'cuda';
  if (choice.hostCopy || !(onGpu || choice.engine === 'native') || isTrivial(problem)) {
    return other(call);
  }
  const {names} = tensorflowOp();
  if (names === null) return other(call);
  const backend = call.backend as TensorflowBackend;
  let outputs: OutputMetadata[];
  try {
    const {id, gpuRefusal} = callTensors(backend.binding).tensorOf(problem, onGpu);
    if (gpuRefusal !== null) return other(call);
    outputs = execute(names, id, backend);
  } catch (error) {
    if (!isUnknownOp(error)) throw engineFailure(choice.engine, withoutPrefix(error));
    denyTensorflowOp(
      `backend '${TENSORFLOW_BACKEND}' runs on another TensorFlow than the one found`,
    );
    return other(call);
  }
  return outputs.map((metadata) => backend.createOutputTensor(metadata));
}

function messageOf(error: unknown): string {
  const {message} = (error ?? {}) as {message?: unknown};
  return typeof message === 'string' ? message : String(error);
}

/** Status 5, not found: an op's name. The op itself never answers so. */
function isUnknownOp(error: unknown): boolean {
  return messageOf(error).startsWith('Invalid TF_Status: 5\n');
}

/** The binding puts "Invalid TF_Status: 3\nMessage: " in front of what TensorFlow says. */
function withoutPrefix(error: unknown): unknown {
  const message = messageOf(error);
  const text = message.replace(/^Invalid TF_Status: \d+\s*Message: /, '');
  return text === message ? error : new Error(text, {cause: error});
}
