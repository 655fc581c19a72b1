// The configuration of a BERT encoder: the fields of Hugging Face's files that change what is computed, checked.

import {ConfigFields} from '../config_fields.js';
import {ACTIVATIONS, type Activation} from '../layers/activations.js';

/** A checked configuration. */
export interface BertConfig {
  readonly vocabSize: number;
  /** Context length: the number of learned positions. */
  readonly positions: number;
  readonly typeVocabSize: number;
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  readonly innerWidth: number;
  readonly activation: Activation;
  readonly layerNormEpsilon: number;
  /** The token that fills short rows. */
  readonly padToken: number;
}

/** How token vectors become one vector per text, as sentence-transformers' files say. */
export interface BertPooling {
  /** `mean` of all tokens, or the first token's vector. */
  readonly kind: 'mean' | 'cls';
  /** Whether embeddings are scaled to length 1. */
  readonly normalise: boolean;
  /** Most tokens of a text; the rest is cut. */
  readonly maxLength: number;
}

/**
 * Reads a parsed config.json.
 *
 * @param file what to call the file in messages. Default: 'config.json'
 * @throws ModelError naming the field that is missing, wrong or asks for something BERT here does not do
 */
export function parseBertConfig(json: unknown, file = 'config.json'): BertConfig {
  const fields = new ConfigFields(json, file);
  if ((fields.value('model_type') ?? 'bert') !== 'bert') throw fields.fail('model_type', '"bert"');
  if ((fields.value('position_embedding_type') ?? 'absolute') !== 'absolute') {
    throw fields.fail('position_embedding_type', '"absolute"');
  }
  if (fields.flag('is_decoder', false)) throw fields.fail('is_decoder', 'false (an encoder)');
  const width = fields.count('hidden_size');
  const heads = fields.count('num_attention_heads');
  if (width % heads !== 0) {
    throw fields.fail('num_attention_heads', `a divisor of hidden_size, ${width}`);
  }
  const vocabSize = fields.count('vocab_size');
  return {
    vocabSize,
    positions: fields.count('max_position_embeddings'),
    typeVocabSize: fields.count('type_vocab_size', 2),
    width,
    layers: fields.count('num_hidden_layers'),
    heads,
    innerWidth: fields.count('intermediate_size'),
    activation: fields.choice('hidden_act', ACTIVATIONS, 'gelu'),
    layerNormEpsilon: fields.positive('layer_norm_eps', 1e-12),
    padToken: fields.tokenIds('pad_token_id', vocabSize)[0] ?? 0,
  };
}

/** What sentence-transformers' files ask for, each as parsed; undefined where there is no such file. */
export interface PoolingFiles {
  /** 1_Pooling/config.json */
  readonly pooling?: unknown;
  /** modules.json: a list of the modules after the encoder. */
  readonly modules?: unknown;
  /** sentence_bert_config.json */
  readonly sentence?: unknown;
}

/**
 * How to pool: mean, normalised and uncut unless the files say otherwise.
 *
 * @throws ModelError for a pooling that is neither mean nor first token
 */
export function parseBertPooling(files: PoolingFiles, {positions}: BertConfig): BertPooling {
  const sentence = new ConfigFields(files.sentence ?? {}, 'sentence_bert_config.json');
  const modules = Array.isArray(files.modules) ? (files.modules as {type?: unknown}[]) : undefined;
  return {
    kind: poolingKind(new ConfigFields(files.pooling ?? {}, '1_Pooling/config.json')),
    normalise:
      modules === undefined || modules.some(({type}) => String(type).endsWith('.Normalize')),
    maxLength: Math.min(positions, sentence.count('max_seq_length', positions)),
  };
}

function poolingKind(fields: ConfigFields): BertPooling['kind'] {
  // Newer files name the mode, older ones have a flag for each.
  const named = fields.value('pooling_mode');
  if (named !== undefined) {
    if (named === 'mean' || named === 'cls') return named;
    throw fields.fail('pooling_mode', '"mean" or "cls"');
  }
  const others = ['max_tokens', 'mean_sqrt_len_tokens', 'weightedmean_tokens', 'lasttoken'];
  for (const other of others) {
    const field = `pooling_mode_${other}`;
    if (fields.flag(field, false)) throw fields.fail(field, 'false (pooling by mean or cls_token)');
  }
  const cls = fields.flag('pooling_mode_cls_token', false);
  if (cls && fields.flag('pooling_mode_mean_tokens', false)) {
    throw fields.fail('pooling_mode_cls_token', 'false beside pooling_mode_mean_tokens');
  }
  return cls ? 'cls' : 'mean';
}
