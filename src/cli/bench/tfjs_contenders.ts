/** Contenders on tensors of tfjs' wasm backend: this package's op by recipe, and attention composed of plain tfjs ops. */
import * as tf from '@tensorflow/tfjs-core';
import {chooseEngine} from '../../engines/choose_engine.js';
import {sageAttention} from '../../index.js';
import type {Precision} from '../../numerics/recipes.js';
import type {BenchCase} from './bench_cases.js';
import type {BenchInputs} from './bench_inputs.js';
import type {Contender} from './bench_timing.js';

/** q, k, v as tensors; freed by the caller. */
export interface BenchTensors {
  readonly q: tf.Tensor3D;
  readonly k: tf.Tensor3D;
  readonly v: tf.Tensor3D;
}

export function toTensors(
  {q, k, v}: BenchInputs,
  {heads, kvHeads, tokens, headDim}: BenchCase,
): BenchTensors {
  const tensor = (values: Float32Array, count: number): tf.Tensor3D =>
    tf.tensor3d(values, [count, tokens, headDim]);
  return {q: tensor(q, heads), k: tensor(k, kvHeads), v: tensor(v, kvHeads)};
}

/** The op as users call it, whatever engine serves it. */
export function sageContender(
  precision: Precision,
  {q, k, v}: BenchTensors,
  c: BenchCase,
): Contender {
  const {heads, tokens, headDim} = c;
  const sizes = {batch: 1, qHeads: heads, kvHeads: heads, qLen: tokens, kvLen: tokens};
  const {engine} = chooseEngine(
    tf.getBackend(),
    precision,
    {...sizes, qkDim: headDim, vDim: headDim},
    c.causal,
  );
  const options = {precision, isCausal: c.causal};
  return ofTensors({engine, precision, group: 'sage'}, () => sageAttention(q, k, v, options));
}

/** Longest sequence for the plain composition: its scores take heads · tokens² · 4 bytes, and seconds. */
export const MAX_COMPOSED_TOKENS = 1024;

/** matMul, mask, softmax, matMul, head by head: on wasm many times faster than one batched product. */
export function composedContender(
  {q, k, v}: BenchTensors,
  {heads: queryHeads, kvHeads, headDim, tokens, causal}: BenchCase,
): Contender {
  const mask = causal ? tf.keep(causalMask(tokens)) : null;
  const attendHead = (queries: tf.Tensor2D, keys: tf.Tensor2D, values: tf.Tensor2D): tf.Tensor2D =>
    tf.tidy(() => {
      const scaled = tf.mul(queries, 1 / Math.sqrt(headDim)) as tf.Tensor2D;
      const scores = tf.matMul(scaled, tf.transpose(keys));
      return tf.matMul(tf.softmax(mask === null ? scores : tf.add(scores, mask)), values);
    });
  const contender = ofTensors({engine: 'peer:tfjs-wasm', precision: 'float32', group: 'sage'}, () =>
    tf.tidy(() => {
      const [keys, values] = [tf.unstack(k), tf.unstack(v)] as [tf.Tensor2D[], tf.Tensor2D[]];
      const heads = (tf.unstack(q) as tf.Tensor2D[]).map((queries, h) => {
        const i = Math.floor((h * kvHeads) / queryHeads);
        return attendHead(queries, keys[i] as tf.Tensor2D, values[i] as tf.Tensor2D);
      });
      return tf.stack(heads) as tf.Tensor3D;
    }),
  );
  return {...contender, dispose: () => void mask?.dispose()};
}

/** 0 where query i sees key j, else a number below every score. */
function causalMask(tokens: number): tf.Tensor2D {
  const values = new Float32Array(tokens * tokens);
  for (let i = 0; i < tokens; i++) values.fill(-1e30, i * tokens + i + 1, (i + 1) * tokens);
  return tf.tensor2d(values, [tokens, tokens]);
}

function ofTensors(
  names: Pick<Contender, 'engine' | 'precision' | 'group'>,
  attend: () => tf.Tensor,
): Contender {
  return {
    ...names,
    // The backend computes before it returns.
    run: () => attend().dispose(),
    output: async () => {
      const o = attend();
      try {
        // A copy: the heap that backs it may grow.
        return (await o.data<'float32'>()).slice();
      } finally {
        o.dispose();
      }
    },
    dispose: () => undefined,
  };
}
