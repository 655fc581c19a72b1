// The configuration of Llama and its relatives (Mistral, Qwen2, Qwen3, SmolLM): the fields of Hugging Face's config.json
// that change what is computed, checked.

import {ConfigFields} from '../config_fields.js';
import {ACTIVATIONS, type Activation} from '../layers/activations.js';
import {parseRotary, type RotaryConfig} from './rotary.js';

/** A checked configuration. */
export interface LlamaConfig {
  readonly vocabSize: number;
  /** Context length that the model was trained for. */
  readonly positions: number;
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  /** Heads of keys and values; a divisor of `heads`. */
  readonly kvHeads: number;
  readonly headDim: number;
  readonly innerWidth: number;
  readonly activation: Activation;
  readonly normEpsilon: number;
  readonly rotary: RotaryConfig;
  /** Biases of the projections to queries, keys and values. */
  readonly queryKeyValueBias: boolean;
  readonly outputBias: boolean;
  readonly mlpBias: boolean;
  /** Whether queries and keys are normalised per head (Qwen3). */
  readonly queryKeyNorm: boolean;
  /** Whether the output projection is the token embedding; undefined: if the weights hold none of its own. */
  readonly tiedHead: boolean | undefined;
  /** Tokens that each layer's attention looks back, itself included; Infinity = all. */
  readonly windows: readonly number[];
  /** Tokens that end a text; may be empty. */
  readonly endOfText: readonly number[];
}

const FAMILIES = ['llama', 'mistral', 'qwen2', 'qwen3'] as const;
type Family = (typeof FAMILIES)[number];

/**
 * Reads a parsed config.json.
 *
 * @param file what to call the file in messages. Default: 'config.json'
 * @throws ModelError naming the field that is missing, wrong or asks for something these models here do not do
 */
export function parseLlamaConfig(json: unknown, file = 'config.json'): LlamaConfig {
  const fields = new ConfigFields(json, file);
  const family = FAMILIES.find((name) => name === (fields.value('model_type') ?? 'llama'));
  if (family === undefined) throw fields.fail('model_type', `one of ${FAMILIES.join(', ')}`);
  const width = fields.count('hidden_size');
  const heads = fields.count('num_attention_heads');
  const kvHeads = fields.count('num_key_value_heads', heads);
  if (heads % kvHeads !== 0) {
    throw fields.fail('num_key_value_heads', `a divisor of num_attention_heads, ${heads}`);
  }
  const headDim = fields.count('head_dim', width / heads);
  if (headDim % 2 !== 0) throw fields.fail('head_dim', 'an even number');
  const layers = fields.count('num_hidden_layers');
  const vocabSize = fields.count('vocab_size');
  const bias = fields.flag('attention_bias', false);
  return {
    vocabSize,
    positions: fields.count('max_position_embeddings', 2048),
    width,
    layers,
    heads,
    kvHeads,
    headDim,
    innerWidth: fields.count('intermediate_size'),
    activation: fields.choice('hidden_act', ACTIVATIONS, 'silu'),
    normEpsilon: fields.positive('rms_norm_eps', 1e-6),
    rotary: parseRotary(fields),
    queryKeyValueBias: family === 'qwen2' || bias,
    outputBias: family !== 'qwen2' && bias,
    mlpBias: fields.flag('mlp_bias', false),
    queryKeyNorm: family === 'qwen3',
    tiedHead: fields.has('tie_word_embeddings')
      ? fields.flag('tie_word_embeddings', false)
      : undefined,
    windows: parseWindows(fields, family, layers),
    endOfText: fields.tokenIds('eos_token_id', vocabSize),
  };
}

/** Sliding windows: Mistral's on every layer, Qwen's on the later ones if switched on, or as `layer_types` lists. */
function parseWindows(fields: ConfigFields, family: Family, layers: number): readonly number[] {
  const everywhere = new Array<number>(layers).fill(Infinity);
  if (family === 'llama' || !fields.has('sliding_window')) return everywhere;
  if (family !== 'mistral' && !fields.flag('use_sliding_window', false)) return everywhere;
  const window = fields.count('sliding_window');
  const types = fields.value('layer_types');
  if (types === undefined) {
    const first = family === 'mistral' ? 0 : fields.count('max_window_layers');
    return everywhere.map((all, layer) => (layer >= first ? window : all));
  }
  const known = ['full_attention', 'sliding_attention'];
  if (!Array.isArray(types) || types.length !== layers || types.some((t) => !known.includes(t))) {
    throw fields.fail('layer_types', `${layers} of ${known.join(', ')}`);
  }
  return types.map((type) => (type === 'sliding_attention' ? window : Infinity));
}
