/** tfjs-sage-attention/models/bert (Node): BERT encoders and text embeddings in tfjs ops, attention as an argument. */
export type {Attention, AttentionOptions} from '../attention.js';
export {loadTokenizer} from '../load_files.js';
export {ModelError, type ModelErrorPlace} from '../model_error.js';
export {plainAttention} from '../plain_attention.js';
export {SafetensorsError} from '../safetensors/errors.js';
export {createTokenizer, type TextTokenizer} from '../tokenizer.js';
export type {WeightSource} from '../weight_reader.js';
export {Bert, type BertInputs} from './bert.js';
export {
  type BertConfig,
  type BertPooling,
  parseBertConfig,
  parseBertPooling,
  type PoolingFiles,
} from './config.js';
export {
  cosineSimilarity,
  embedTexts,
  type EmbedTextsOptions,
  type PaddedTexts,
  padTexts,
  similarityTable,
} from './embed_texts.js';
export {loadBert, type LoadBertOptions} from './load.js';
