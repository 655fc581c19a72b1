// The configuration of a GPT-2 model: the fields of Hugging Face's config.json that change what is computed, checked.

import {isTokenId} from '../config_fields.js';
import {Gpt2Error} from './errors.js';

/** Activations of the MLP. 'gelu_new' is GELU by tanh, 'gelu' the exact one by erf. */
export type Gpt2Activation = 'gelu_new' | 'gelu' | 'relu';

/** A checked configuration. */
export interface Gpt2Config {
  readonly vocabSize: number;
  /** Context length: the number of learned positions. */
  readonly positions: number;
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  /** Width of the MLP's hidden layer; 4 * width unless `n_inner` says otherwise. */
  readonly innerWidth: number;
  readonly activation: Gpt2Activation;
  readonly layerNormEpsilon: number;
  /** Whether the output projection is the token embedding, transposed. */
  readonly tiedHead: boolean;
  /** Softmax scale of each layer's attention. */
  readonly attentionScale: readonly number[];
  /** The token that ends a text, if the model has one. */
  readonly endOfText: number | undefined;
}

/** Names that config.json files use, and what each means. */
const ACTIVATIONS: ReadonlyMap<unknown, Gpt2Activation> = new Map([
  ['gelu_new', 'gelu_new'],
  ['gelu_pytorch_tanh', 'gelu_new'],
  ['gelu', 'gelu'],
  ['relu', 'relu'],
]);

/**
 * Reads a parsed config.json.
 *
 * @param json the parsed file
 * @param file what to call the file in messages. Default: 'config.json'
 * @throws Gpt2Error naming the field that is missing, wrong or asks for something GPT-2 here does not do
 */
export function parseGpt2Config(json: unknown, file = 'config.json'): Gpt2Config {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new Gpt2Error(`is ${JSON.stringify(json)}; expected a JSON object`, {file});
  }
  const fields = json as Record<string, unknown>;
  const fail = (field: string, expected: string): Gpt2Error => {
    const value = fields[field];
    const came = value === undefined ? 'is missing' : `is ${JSON.stringify(value)}`;
    return new Gpt2Error(`${came}; expected ${expected}`, {file, field});
  };
  const count = (field: string): number => {
    const value = fields[field];
    if (!Number.isSafeInteger(value) || (value as number) < 1) {
      throw fail(field, 'a whole number >= 1');
    }
    return value as number;
  };
  const flag = (field: string, whenMissing: boolean): boolean => {
    const value = fields[field] ?? whenMissing;
    if (typeof value !== 'boolean') throw fail(field, 'true or false');
    return value;
  };

  if ((fields['model_type'] ?? 'gpt2') !== 'gpt2') throw fail('model_type', '"gpt2"');
  if (flag('add_cross_attention', false)) throw fail('add_cross_attention', 'false (no encoder)');
  const width = count('n_embd');
  const heads = count('n_head');
  const layers = count('n_layer');
  if (width % heads !== 0) throw fail('n_head', `a divisor of n_embd, ${width}`);
  const activation = ACTIVATIONS.get(fields['activation_function'] ?? 'gelu_new');
  if (activation === undefined) {
    throw fail('activation_function', `one of ${[...ACTIVATIONS.keys()].join(', ')}`);
  }
  const epsilon = fields['layer_norm_epsilon'] ?? 1e-5;
  if (typeof epsilon !== 'number' || !(epsilon > 0 && epsilon < 1)) {
    throw fail('layer_norm_epsilon', 'a number between 0 and 1');
  }
  const vocabSize = count('vocab_size');
  const endOfText = fields['eos_token_id'] ?? undefined;
  if (endOfText !== undefined && !isTokenId(endOfText, vocabSize)) {
    throw fail('eos_token_id', `a token id below vocab_size, ${vocabSize}`);
  }
  const scale = flag('scale_attn_weights', true) ? 1 / Math.sqrt(width / heads) : 1;
  const byLayer = flag('scale_attn_by_inverse_layer_idx', false);
  return {
    vocabSize,
    positions: count('n_positions'),
    width,
    layers,
    heads,
    innerWidth: (fields['n_inner'] ?? null) === null ? 4 * width : count('n_inner'),
    activation,
    layerNormEpsilon: epsilon,
    tiedHead: flag('tie_word_embeddings', true),
    attentionScale: Array.from({length: layers}, (_, i) => (byLayer ? scale / (i + 1) : scale)),
    endOfText,
  };
}
