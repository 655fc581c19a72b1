/** The ops called without the package's TypeScript: inputs as a test chooses them, right or wrong. */
import * as tf from '@tensorflow/tfjs-core';
import {CALL_WORDS, tensorflowOp} from '../../src/engines/tensorflow_op';
import {isRefusal, resolveRecipe} from '../../src/numerics/recipes';
import {encodeProblem, PROBLEM_WORDS, type AttentionProblem} from '../../src/problem';
import {problemOf, casesTagged} from '../cases';

/** The parts of tfjs-node's backend that the tests use. */
export interface NodeBackend {
  executeMultipleOutputs(
    name: string,
    attributes: readonly unknown[],
    inputs: readonly tf.Tensor[],
    outputs: number,
  ): tf.Tensor[];
}

export const nodeBackend = () => tf.backend() as unknown as NodeBackend;

export function opNames() {
  const {names} = tensorflowOp();
  if (names === null) throw new Error('there is no op');
  return names;
}

/** 2 heads, 5 queries, 7 keys, head_dim 4 and v's 3, computed exactly. */
export function smallProblem(changes: Partial<AttentionProblem> = {}): AttentionProblem {
  const recipe = resolveRecipe('exact', {});
  if (isRefusal(recipe)) throw new Error('exact is refused');
  const sizes = {batch: 1, heads: 2, kvHeads: 2, qLen: 5, kvLen: 7, headDim: 4, vDim: 3};
  const plain = {...casesTagged('fast')[0]!, ...sizes, mask: null, wantLse: false};
  return {...problemOf(plain, recipe), ...changes};
}

/** Values of the input `call`. */
export function callValues(
  problem: AttentionProblem,
  settings: {isa?: number; threads?: number} = {},
) {
  const values = new Int32Array(CALL_WORDS);
  encodeProblem(problem, new Float64Array(values.buffer, 0, PROBLEM_WORDS));
  values[CALL_WORDS - 2] = settings.isa ?? 0;
  values[CALL_WORDS - 1] = settings.threads ?? 1;
  return values;
}

export const callTensor = (problem: AttentionProblem, settings = {}) =>
  tf.tensor1d(callValues(problem, settings), 'int32');
