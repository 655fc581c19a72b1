/** Inputs of a benchmark case, and the two ways in which attention operators lay them out. */
import {Random} from '../../accuracy/distributions.js';
import type {BenchCase} from './bench_cases.js';

/** N(0,1), [heads, tokens, head_dim]. */
export interface BenchInputs {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
}

export function makeBenchInputs({heads, headDim, tokens}: BenchCase): BenchInputs {
  const random = new Random(1);
  const operand = (): Float32Array => {
    const values = new Float32Array(heads * tokens * headDim);
    for (let i = 0; i < values.length; i++) values[i] = random.normal();
    return values;
  };
  return {q: operand(), k: operand(), v: operand()};
}

/** [heads, tokens, head_dim] to [tokens, heads, head_dim]. */
export function headsToTokens(x: Float32Array, {heads, headDim, tokens}: BenchCase): Float32Array {
  return swapAxes(x, heads, tokens, headDim);
}

/** [tokens, heads, head_dim] to [heads, tokens, head_dim]. */
export function tokensToHeads(x: Float32Array, {heads, headDim, tokens}: BenchCase): Float32Array {
  return swapAxes(x, tokens, heads, headDim);
}

function swapAxes(x: Float32Array, outer: number, inner: number, width: number): Float32Array {
  const swapped = new Float32Array(x.length);
  for (let i = 0; i < outer; i++) {
    for (let j = 0; j < inner; j++) {
      const row = (i * inner + j) * width;
      swapped.set(x.subarray(row, row + width), (j * outer + i) * width);
    }
  }
  return swapped;
}
