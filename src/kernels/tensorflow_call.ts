/**
 * The first input of TensorFlow's ops: problem and settings as an int32 tensor, which TensorFlow keeps in host memory
 * beside any GPU. Models repeat few problems many times, so the last ones are kept.
 */
import {callSettings, CALL_WORDS, noteGpuRefusal} from '../engines/tensorflow_op.js';
import {encodeProblem, PROBLEM_WORDS, type AttentionProblem} from '../problem.js';
import {loadAddon} from '../runtime/load_addon.js';

/** The parts of tfjs-node's binding that make tensors; they are not tfjs tensors and count nowhere. */
export interface TensorflowBinding {
  readonly TF_INT32: number;
  readonly TF_FLOAT: number;
  createTensor(shape: readonly number[], dtype: number, values: Int32Array | Float32Array): number;
  deleteTensor(id: number): void;
}

/** Problems of one model: self and cross attention, prefill and decoding, training and evaluation. */
const KEPT = 16;

interface KnownCall {
  readonly words: Int32Array;
  readonly id: number;
  /** Why the CUDA kernels do not compute it; null when they do, or nobody asked. */
  gpuRefusal: string | null;
  askedGpu: boolean;
}

/** The call that is asked for. */
const words = new Int32Array(CALL_WORDS);
const problemWords = new Float64Array(words.buffer, 0, PROBLEM_WORDS);

/** Calls of one binding, the latest first. */
class CallTensors {
  private readonly known: KnownCall[] = [];
  private none: number | null = null;

  constructor(readonly binding: TensorflowBinding) {}

  /** A float32 tensor without elements: an optional input that is not there. */
  get noneId(): number {
    this.none ??= this.binding.createTensor([0], this.binding.TF_FLOAT, new Float32Array(0));
    return this.none;
  }

  /** The tensor for a problem under the present settings. */
  tensorOf(problem: AttentionProblem, onGpu: boolean): Readonly<KnownCall> {
    const {isa, threads} = callSettings();
    encodeProblem(problem, problemWords);
    words[CALL_WORDS - 2] = isa;
    words[CALL_WORDS - 1] = threads;
    const call = this.find() ?? this.add();
    if (onGpu && !call.askedGpu) {
      call.gpuRefusal = loadAddon().addon?.cudaSupports(problemWords) ?? null;
      call.askedGpu = true;
      if (call.gpuRefusal !== null) noteGpuRefusal(call.gpuRefusal);
    }
    return call;
  }

  private find(): KnownCall | null {
    const {known} = this;
    for (let place = 0; place < known.length; place++) {
      const call = known[place] as KnownCall;
      if (!sameWords(call.words)) continue;
      if (place > 0) {
        known.splice(place, 1);
        known.unshift(call);
      }
      return call;
    }
    return null;
  }

  private add(): KnownCall {
    const {binding, known} = this;
    if (known.length === KEPT) binding.deleteTensor((known.pop() as KnownCall).id);
    // An array of its own: TensorFlow may read it in place as long as the tensor lives.
    const copy = words.slice();
    const id = binding.createTensor([CALL_WORDS], binding.TF_INT32, copy);
    const call: KnownCall = {words: copy, id, gpuRefusal: null, askedGpu: false};
    known.unshift(call);
    return call;
  }
}

function sameWords(other: Int32Array): boolean {
  for (let i = 0; i < CALL_WORDS; i++) {
    if (words[i] !== other[i]) return false;
  }
  return true;
}

let current: CallTensors | null = null;

export function callTensors(binding: TensorflowBinding): CallTensors {
  if (current?.binding !== binding) current = new CallTensors(binding);
  return current;
}
