/** The demo's model: loaded once, its attention exchanged between passes, the time spent inside attention taken. */
import {join} from 'node:path';
import type {Attention} from '../../models/gpt2/attention.js';
import {END_OF_TEXT} from '../../models/gpt2/bytes.js';
import type {Gpt2} from '../../models/gpt2/gpt2.js';
import {loadGpt2} from '../../models/gpt2/load.js';
import {plainAttention} from '../../models/gpt2/plain_attention.js';
import {sageAttention} from '../index.js';
import type {Precision} from '../numerics/recipes.js';
import {CliError} from './cli_error.js';
import {shippedPath} from './demo_text.js';

/** The model that comes with the package. */
export const DEFAULT_MODEL = ['models', 'gpt2', 'js-gpt'];

/** What computes attention: plain tfjs ops, or a recipe of this package. */
export type AttentionName = 'tfjs' | Precision;

export interface DemoModel {
  readonly gpt2: Gpt2;
  use(name: AttentionName): void;
  /** Milliseconds inside attention, over all layers, since the last call of this function. */
  takeAttentionMs(): number;
}

/**
 * Loads a byte-level GPT-2 onto the current backend.
 * @param directory Default: the model that comes with the package.
 * @throws CliError when its tokens are not bytes; Gpt2Error, SafetensorsError for damaged files.
 */
export async function loadDemoModel(directory?: string): Promise<DemoModel> {
  let current: Attention = plainAttention;
  let attentionMs = 0;
  // Backends cpu and wasm compute before they return, so the clock around a call measures the call.
  const timed: Attention = (q, k, v, options) => {
    const start = performance.now();
    const o = current(q, k, v, options);
    attentionMs += performance.now() - start;
    return o;
  };
  const path = directory ?? shippedPath(DEFAULT_MODEL);
  const gpt2 = await loadGpt2(path, {attention: timed});
  const {vocabSize} = gpt2.config;
  if (vocabSize !== END_OF_TEXT + 1) {
    gpt2.dispose();
    throw new CliError(
      `${join(path, 'config.json')}: vocab_size is ${vocabSize}; the demo reads bytes, so it needs a model with ` +
        `${END_OF_TEXT + 1} tokens (256 bytes and an end of text).`,
    );
  }
  return {
    gpt2,
    use(name) {
      current = name === 'tfjs' ? plainAttention : recipeAttention(name);
    },
    takeAttentionMs() {
      const taken = attentionMs;
      attentionMs = 0;
      return taken;
    },
  };
}

function recipeAttention(precision: Precision): Attention {
  return (q, k, v, options) => sageAttention(q, k, v, {...options, precision});
}
