// The weights of a ViT classifier under Hugging Face's names.

import type * as tf from '@tensorflow/tfjs-core';
import type {LinearWeights} from '../layers/linear.js';
import type {NormWeights} from '../layers/norms.js';
import type {WeightReader} from '../weight_reader.js';
import type {VitConfig} from './config.js';

/** One encoder block. */
export interface VitBlock {
  readonly norm1: NormWeights;
  readonly q: LinearWeights;
  readonly k: LinearWeights;
  readonly v: LinearWeights;
  readonly attentionOut: LinearWeights;
  readonly norm2: NormWeights;
  readonly mlpIn: LinearWeights;
  readonly mlpOut: LinearWeights;
}

/** The whole model. */
export interface VitWeights {
  /** The class token with its position, [1, width]. */
  readonly classToken: tf.Tensor2D;
  /** Positions of the patches, [patches, width]. */
  readonly positions: tf.Tensor2D;
  readonly patches: LinearWeights;
  readonly blocks: readonly VitBlock[];
  readonly norm: NormWeights;
  readonly classifier: LinearWeights;
}

/** Reads and checks every weight. */
export function readVitWeights(reader: WeightReader, config: VitConfig): VitWeights {
  const {width, innerWidth, layers, channels, patchSize, imageSize, labels} = config;
  const patches = Math.floor(imageSize / patchSize) ** 2;
  const bias = config.queryKeyValueBias;
  return reader.all(() => {
    const token = reader.values('vit.embeddings.cls_token', [1, 1, width]);
    const places = reader.values('vit.embeddings.position_embeddings', [1, patches + 1, width]);
    const first = token.map((value, i) => value + (places[i] as number));
    return {
      classToken: reader.matrixOf(first, 1, width),
      positions: reader.matrixOf(places.slice(width), patches, width),
      patches: reader.patches(
        'vit.embeddings.patch_embeddings.projection',
        channels,
        patchSize,
        width,
      ),
      blocks: Array.from({length: layers}, (_, i) => {
        const layer = `vit.encoder.layer.${i}`;
        const attention = `${layer}.attention`;
        return {
          norm1: reader.norm(`${layer}.layernorm_before`, width),
          q: reader.linear(`${attention}.attention.query`, width, width, bias),
          k: reader.linear(`${attention}.attention.key`, width, width, bias),
          v: reader.linear(`${attention}.attention.value`, width, width, bias),
          attentionOut: reader.linear(`${attention}.output.dense`, width, width),
          norm2: reader.norm(`${layer}.layernorm_after`, width),
          mlpIn: reader.linear(`${layer}.intermediate.dense`, width, innerWidth),
          mlpOut: reader.linear(`${layer}.output.dense`, innerWidth, width),
        };
      }),
      norm: reader.norm('vit.layernorm', width),
      classifier: reader.linear('classifier', width, labels.length),
    };
  });
}
