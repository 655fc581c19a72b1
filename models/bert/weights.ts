// The weights of BERT under Hugging Face's names.

import type * as tf from '@tensorflow/tfjs-core';
import type {LinearWeights} from '../layers/linear.js';
import type {NormWeights} from '../layers/norms.js';
import type {WeightReader} from '../weight_reader.js';
import type {BertConfig} from './config.js';

/** One encoder block. */
export interface BertBlock {
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly attentionOut: LinearWeights;
  readonly norm1: NormWeights;
  readonly mlpIn: LinearWeights;
  readonly mlpOut: LinearWeights;
  readonly norm2: NormWeights;
}

/** The encoder, without pooler and heads. */
export interface BertWeights {
  /** [vocab, width] */
  readonly tokens: tf.Tensor2D;
  /** [positions, width] */
  readonly positions: tf.Tensor2D;
  /** [types, width] */
  readonly types: tf.Tensor2D;
  readonly norm: NormWeights;
  readonly blocks: readonly BertBlock[];
}

/** Reads and checks every weight; names with or without the `bert.` of files saved from a model with a head. */
export function readBertWeights(reader: WeightReader, config: BertConfig): BertWeights {
  const {vocabSize, positions, typeVocabSize, width, innerWidth, layers} = config;
  const root = reader.prefixOf('embeddings.word_embeddings.weight', ['', 'bert.']);
  const embeddings = `${root}embeddings`;
  return reader.all(() => ({
    tokens: reader.matrix(`${embeddings}.word_embeddings.weight`, vocabSize, width),
    positions: reader.matrix(`${embeddings}.position_embeddings.weight`, positions, width),
    types: reader.matrix(`${embeddings}.token_type_embeddings.weight`, typeVocabSize, width),
    norm: reader.norm(`${embeddings}.LayerNorm`, width),
    blocks: Array.from({length: layers}, (_, i) => {
      const layer = `${root}encoder.layer.${i}`;
      return {
        q: reader.linear(`${layer}.attention.self.query`, width, width),
        k: reader.linear(`${layer}.attention.self.key`, width, width),
        v: reader.linear(`${layer}.attention.self.value`, width, width),
        attentionOut: reader.linear(`${layer}.attention.output.dense`, width, width),
        norm1: reader.norm(`${layer}.attention.output.LayerNorm`, width),
        mlpIn: reader.linear(`${layer}.intermediate.dense`, width, innerWidth),
        mlpOut: reader.linear(`${layer}.output.dense`, innerWidth, width),
        norm2: reader.norm(`${layer}.output.LayerNorm`, width),
      };
    }),
  }));
}
