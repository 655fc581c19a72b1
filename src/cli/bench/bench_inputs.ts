/** Inputs of a benchmark case, and the two ways in which attention operators lay them out. */
import {Random} from '../../accuracy/distributions.js';
import type {BenchCase} from './bench_cases.js';

/** N(0,1). */
export interface BenchInputs {
  /** [heads, tokens, head_dim]. */
  readonly q: Float32Array;
  /** [kv heads, tokens, head_dim], as v. */
  readonly k: Float32Array;
  readonly v: Float32Array;
}

export function makeBenchInputs({heads, kvHeads, headDim, tokens}: BenchCase): BenchInputs {
  const random = new Random(1);
  const operand = (rows: number): Float32Array => {
    const values = new Float32Array(rows * headDim);
    for (let i = 0; i < values.length; i++) values[i] = random.normal();
    return values;
  };
  return {q: operand(heads * tokens), k: operand(kvHeads * tokens), v: operand(kvHeads * tokens)};
}

/** A matrix of each head: what an operator takes. */
export interface HeadShape {
  readonly heads: number;
  readonly tokens: number;
  readonly headDim: number;
}

/** [heads, tokens, head_dim] to [tokens, heads, head_dim]. */
export function headsToTokens(x: Float32Array, {heads, headDim, tokens}: HeadShape): Float32Array {
  return swapAxes(x, heads, tokens, headDim);
}

/** [tokens, heads, head_dim] to [heads, tokens, head_dim]. */
export function tokensToHeads(x: Float32Array, {heads, headDim, tokens}: HeadShape): Float32Array {
  return swapAxes(x, tokens, heads, headDim);
}

/** [kv heads, tokens, head_dim] to [heads, tokens, head_dim], for operators that know no grouped heads. */
export function repeatHeads(
  x: Float32Array,
  {heads, kvHeads, headDim, tokens}: BenchCase,
): Float32Array {
  if (kvHeads === heads) return x;
  const size = tokens * headDim;
  const repeated = new Float32Array(heads * size);
  for (let h = 0; h < heads; h++) {
    const from = Math.floor((h * kvHeads) / heads) * size;
    repeated.set(x.subarray(from, from + size), h * size);
  }
  return repeated;
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
