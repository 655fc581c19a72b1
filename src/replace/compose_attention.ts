/**
 * An attention of a graph by tfjs ops, step by step as the model wrote it: for what the op does not take (other dtypes,
 * very wide heads) and for rows whose finite masks mean something else than hiding. Blocks of queries, so that no
 * whole matrix of scores is ever held.
 */
import * as tf from '@tensorflow/tfjs-core';
import type {AlignedOperands, AlignedStep} from './aligned_operands.js';

/** Scores of one block: 2^20 floats are 4 MiB. */
const MAX_BLOCK_SCORES = 2 ** 20;

/**
 * Call within a tidy.
 * @param zeroHidden Whether hidden keys get a probability of 0, which makes rows that see nothing 0.
 * @returns o as [batch, heads, queries, head_dim], or in the operands' layout.
 */
export function composeAttention(
  operands: AlignedOperands,
  scale: number,
  zeroHidden: boolean,
): tf.Tensor4D {
  const {layout, steps} = operands;
  const byHeads = (x: tf.Tensor4D): tf.Tensor4D =>
    layout === 'NHD' ? tf.transpose(x, [0, 2, 1, 3]) : x;
  const q = byHeads(operands.q);
  const [batch, heads, qLen] = q.shape;
  const k = perQueryHead(byHeads(operands.k), heads);
  const v = perQueryHead(byHeads(operands.v), heads);
  const kvLen = k.shape[2];
  const rows = Math.max(1, Math.floor(MAX_BLOCK_SCORES / Math.max(1, batch * heads * kvLen)));
  const blocks: tf.Tensor4D[] = [];
  for (let from = 0; from < qLen; from += rows) {
    const count = Math.min(rows, qLen - from);
    blocks.push(
      tf.tidy(() => {
        const part = tf.slice(q, [0, 0, from, 0], [-1, -1, count, -1]);
        let scores: tf.Tensor4D = tf.mul(tf.matMul(part, k, false, true), scale);
        for (const step of steps) scores = applyStep(scores, step, from, qLen);
        let p = tf.softmax(scores);
        if (zeroHidden) {
          for (const step of steps) {
            if (step.op !== 'add') p = applyStep(p, {...step, value: 0}, from, qLen);
          }
        }
        return tf.matMul(p, v);
      }),
    );
  }
  const o =
    blocks.length === 0
      ? tf.zeros<tf.Rank.R4>([batch, heads, 0, v.shape[3]])
      : blocks.length === 1
        ? (blocks[0] as tf.Tensor4D)
        : tf.concat(blocks, 2);
  return byHeads(o);
}

/** Each key head as often as query heads read it. */
function perQueryHead(x: tf.Tensor4D, heads: number): tf.Tensor4D {
  const [batch, own, tokens, dim] = x.shape;
  if (own === heads) return x;
  const spread = tf.tile(tf.reshape(x, [batch, own, 1, tokens, dim]), [1, 1, heads / own, 1, 1]);
  return tf.reshape(spread, [batch, heads, tokens, dim]);
}

function applyStep(
  scores: tf.Tensor4D,
  step: AlignedStep,
  from: number,
  qLen: number,
): tf.Tensor4D {
  const [, , rows, kvLen] = scores.shape;
  if (step.op === 'causal') {
    const offset = step.corner === 'top_left' ? 0 : kvLen - qLen;
    const query = tf.reshape(tf.range(from + offset, from + offset + rows), [1, 1, -1, 1]);
    const seen = tf.lessEqual<tf.Tensor4D>(tf.reshape(tf.range(0, kvLen), [1, 1, 1, -1]), query);
    return step.mode === 'select'
      ? tf.where(seen, scores, step.value)
      : tf.add(scores, tf.where<tf.Tensor4D>(seen, 0, step.value));
  }
  const whole = step.tensor.shape[2] === 1;
  const part = whole ? step.tensor : tf.slice(step.tensor, [0, 0, from, 0], [-1, -1, rows, -1]);
  return step.op === 'add'
    ? tf.add(scores, tf.mul(part, step.factor))
    : tf.where(part, scores, step.value);
}
