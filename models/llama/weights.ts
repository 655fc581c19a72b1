// The weights of Llama and its relatives under Hugging Face's names.

import type * as tf from '@tensorflow/tfjs-core';
import type {LinearWeights} from '../layers/linear.js';
import type {WeightReader} from '../weight_reader.js';
import type {LlamaConfig} from './config.js';

/** One decoder block. */
export interface LlamaBlock {
  readonly norm1: tf.Tensor1D;
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly attentionOut: LinearWeights;
  /** Per-head norms of queries and keys, [head_dim]; undefined where the model has none. */
  readonly qNorm: tf.Tensor1D | undefined;
  readonly kNorm: tf.Tensor1D | undefined;
  readonly norm2: tf.Tensor1D;
  readonly gate: LinearWeights;
  readonly up: LinearWeights;
  readonly down: LinearWeights;
}

/** The whole model. */
export interface LlamaWeights {
  /** [vocab, width] */
  readonly tokens: tf.Tensor2D;
  readonly blocks: readonly LlamaBlock[];
  readonly finalNorm: tf.Tensor1D;
  /** [width, vocab]: transposed once here, as a product with a transposed factor is many times slower on wasm. */
  readonly head: tf.Tensor2D;
}

/** Reads and checks every weight; names with or without the `model.` of files saved from a model with a head. */
export function readLlamaWeights(reader: WeightReader, config: LlamaConfig): LlamaWeights {
  const {vocabSize, width, innerWidth, layers, heads, kvHeads, headDim} = config;
  const root = reader.prefixOf('embed_tokens.weight', ['model.', '']);
  const ownHead = 'lm_head.weight';
  const tied = config.tiedHead ?? !reader.has(ownHead);
  return reader.all(() => ({
    tokens: reader.matrix(`${root}embed_tokens.weight`, vocabSize, width),
    blocks: Array.from({length: layers}, (_, i) => {
      const layer = `${root}layers.${i}`;
      const attention = `${layer}.self_attn`;
      const projection = (name: string, rows: number): LinearWeights =>
        reader.linear(`${attention}.${name}`, width, rows * headDim, config.queryKeyValueBias);
      const headNorm = (name: string): tf.Tensor1D | undefined =>
        config.queryKeyNorm ? reader.vector(`${attention}.${name}.weight`, headDim) : undefined;
      const {outputBias, mlpBias} = config;
      return {
        norm1: reader.vector(`${layer}.input_layernorm.weight`, width),
        q: projection('q_proj', heads),
        k: projection('k_proj', kvHeads),
        v: projection('v_proj', kvHeads),
        attentionOut: reader.linear(`${attention}.o_proj`, heads * headDim, width, outputBias),
        qNorm: headNorm('q_norm'),
        kNorm: headNorm('k_norm'),
        norm2: reader.vector(`${layer}.post_attention_layernorm.weight`, width),
        gate: reader.linear(`${layer}.mlp.gate_proj`, width, innerWidth, mlpBias),
        up: reader.linear(`${layer}.mlp.up_proj`, width, innerWidth, mlpBias),
        down: reader.linear(`${layer}.mlp.down_proj`, innerWidth, width, mlpBias),
      };
    }),
    finalNorm: reader.vector(`${root}norm.weight`, width),
    head: reader.transposed(tied ? `${root}embed_tokens.weight` : ownHead, vocabSize, width),
  }));
}
