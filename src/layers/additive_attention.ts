/** Keras' AdditiveAttention. */
import * as tf from '@tensorflow/tfjs-core';
import * as tfl from '@tensorflow/tfjs-layers';
import {additiveAttention as additive} from './additive_scores.js';
import {ADDITIVE, Attention, type AttentionArgs, type AttentionParts} from './attention.js';
import type {AttentionInputs, Shape} from './attention_layer.js';

/** As of Attention, without `scoreMode`; `useScale` is `true` by default, and its weight has one number per channel. */
export type AdditiveAttentionArgs = Omit<AttentionArgs, 'scoreMode'>;

/**
 * Additive attention, by Bahdanau et al.: scores are sum(scale · tanh(q + k)). Always exact; no engine replaces it.
 *
 * Inputs: query [...,T,D], value [...,S,Dv], key [...,S,D]. Output [...,T,Dv]; scores [...,T,S].
 */
export class AdditiveAttention extends Attention {
  /** @nocollapse */
  static override className = 'AdditiveAttention';

  constructor(args: AdditiveAttentionArgs = {}) {
    super({...args, useScale: args.useScale ?? true, scoreMode: 'dot'});
  }

  override whyNotReplaced(): string {
    return ADDITIVE;
  }

  protected override scaleFor = (query: Shape): tfl.LayerVariable =>
    this.addWeight(
      'scale',
      [query[query.length - 1] ?? 1],
      'float32',
      tfl.initializers.glorotUniform({}),
    );

  protected override weigh(
    parts: AttentionParts,
    {dropout}: AttentionInputs,
  ): {output: tf.Tensor3D; scores: tf.Tensor3D} {
    const scale = this.scale?.read() ?? null;
    return additive(parts, dropout, (sum) => {
      const bent = tf.tanh(sum);
      return tf.sum(scale === null ? bent : tf.mul(bent, scale), -1);
    });
  }

  override getConfig(): tf.serialization.ConfigDict {
    const {scoreMode: _, ...config} = super.getConfig();
    return config;
  }
}
