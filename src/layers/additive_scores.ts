/** Attention whose scores are a function of q + k, in blocks of queries: q + k has a width for every pair. */
import * as tf from '@tensorflow/tfjs-core';
import {positionMask, softmaxOfScores, type ScoreDropout} from './attend.js';
import type {AttentionParts} from './attention.js';

/** Numbers of q + k that one block holds: 16 MiB of float32. */
const BLOCK_NUMBERS = 2 ** 22;

/**
 * @param score From q + k [B,t,S,D] to scores [B,t,S].
 * @returns Output [B,T,Dv] and scores [B,T,S], the latter before dropout.
 */
export function additiveAttention(
  {q, k, v, causal, keyMask}: AttentionParts,
  dropout: ScoreDropout | null,
  score: (sum: tf.Tensor4D) => tf.Tensor,
): {output: tf.Tensor3D; scores: tf.Tensor3D} {
  const [batch, queries, width] = q.shape;
  const keys = k.shape[1];
  const perBlock = Math.max(1, Math.floor(BLOCK_NUMBERS / Math.max(1, batch * keys * width)));
  const columns = tf.expandDims<tf.Tensor4D>(k, 1);
  const blocks: tf.Tensor3D[] = [];
  for (let from = 0; from < queries; from += perBlock) {
    const count = Math.min(perBlock, queries - from);
    blocks.push(
      tf.tidy(() => {
        const rows = tf.expandDims<tf.Tensor4D>(
          tf.slice(q, [0, from, 0], [batch, count, width]),
          2,
        );
        return tf.reshape<tf.Rank.R3>(score(tf.add<tf.Tensor4D>(rows, columns)), [
          batch,
          count,
          keys,
        ]);
      }),
    );
  }
  const logits =
    blocks.length === 0 ? tf.zeros<tf.Rank.R3>([batch, 0, keys]) : tf.concat(blocks, 1);
  const positions = positionMask(queries, keys, {causal, window: null});
  const order = positions === null ? null : tf.squeeze(positions, [0]);
  const seen = keyMask === null ? null : tf.expandDims(keyMask, 1);
  const mask = order !== null && seen !== null ? tf.logicalAnd(order, seen) : (order ?? seen);
  const {scores, dropped} = softmaxOfScores(logits, mask, 'mean', dropout);
  return {output: tf.matMul<tf.Tensor3D>(dropped, v), scores};
}
