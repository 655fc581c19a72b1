/** Attention of a loaded model that is exchanged between passes, with the time spent inside it. */
import type {Attention} from '../../models/attention.js';
import {plainAttention} from '../../models/plain_attention.js';
import {sageAttention} from '../index.js';
import type {Precision} from '../numerics/recipes.js';

/** What computes attention: plain tfjs ops, or a recipe of this package. */
export type AttentionName = 'tfjs' | Precision;

export interface ExchangeableAttention {
  /** Given to the model once. */
  readonly attention: Attention;
  use(name: AttentionName): void;
  /** Milliseconds inside attention, over all layers, since the last call of this function. */
  takeMs(): number;
}

export function exchangeableAttention(): ExchangeableAttention {
  let current: Attention = plainAttention;
  let ms = 0;
  return {
    // Backends cpu and wasm compute before they return, so the clock around a call measures the call.
    attention: (q, k, v, options) => {
      const start = performance.now();
      const o = current(q, k, v, options);
      ms += performance.now() - start;
      return o;
    },
    use(name) {
      current = name === 'tfjs' ? plainAttention : recipeAttention(name);
    },
    takeMs() {
      const taken = ms;
      ms = 0;
      return taken;
    },
  };
}

function recipeAttention(precision: Precision): Attention {
  return (q, k, v, options) => sageAttention(q, k, v, {...options, precision});
}
