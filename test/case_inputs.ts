/** Seeded inputs of the case table, and its masks. The same seed gives the same numbers everywhere. */
import {applyDistribution, Operand, Random} from '../src/accuracy/distributions.js';
import type {AttentionCase, MaskCase} from './cases.js';

export {Random};

const {floor} = Math;

/** Inputs of one case, laid out by its `layout`; views into larger buffers where the case has a `viewOffset`. */
export interface CaseInputs {
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly mask: Float32Array | Uint8Array | null;
}

/** q, k, v and mask of a case. */
export function makeInputs(c: AttentionCase, seed: number): CaseInputs {
  const random = new Random(seed);
  const q = tokens(c, 'q', random);
  const k = tokens(c, 'k', random);
  const v = tokens(c, 'v', random);
  applyDistribution(c.distribution, q, k, v, random);
  return {q: q.data, k: k.data, v: v.data, mask: c.mask && makeMask(c, c.mask, random)};
}

/** Normal numbers in the shape of o, for gradients. */
export function makeOutputGradient(c: AttentionCase, seed: number): Float32Array {
  const random = new Random(seed + 7919);
  const count = c.batch * c.heads * c.qLen * c.vDim;
  return floatView(c, count).map(() => random.normal());
}

/** Normal numbers in the shape of lse, [B,H,Nq]. */
export function makeLseGradient(c: AttentionCase, seed: number): Float32Array {
  const random = new Random(seed + 104729);
  return new Float32Array(c.batch * c.heads * c.qLen).map(() => random.normal());
}

function floatView(c: AttentionCase, count: number): Float32Array {
  return new Float32Array(new ArrayBuffer(4 * (count + c.viewOffset)), 4 * c.viewOffset, count);
}

function tokens(c: AttentionCase, which: 'q' | 'k' | 'v', random: Random): Operand {
  const heads = which === 'q' ? c.heads : c.kvHeads;
  const count = which === 'q' ? c.qLen : c.kvLen;
  const dim = which === 'v' ? c.vDim : c.headDim;
  const data = floatView(c, c.batch * heads * count * dim);
  return new Operand(data, c.batch, heads, count, dim, c.layout, random);
}

/** Share of keys that a mask lets through. */
const ATTENDED_RATE = 0.8;
/** Under `emptyRows`, queries 0, 5, 10, .. attend to nothing. */
const EMPTY_ROW_STRIDE = 5;

function makeMask(c: AttentionCase, mask: MaskCase, random: Random): Float32Array | Uint8Array {
  const [batch, heads, queries, keys] = maskShape(c, mask);
  const count = batch * heads * queries * keys;
  const boolean = mask.kind === 'boolean';
  const data = boolean
    ? new Uint8Array(new ArrayBuffer(count + c.viewOffset), c.viewOffset, count)
    : floatView(c, count);
  for (let i = 0; i < count; i++) {
    const query = floor(i / keys) % queries;
    const empty = mask.emptyRows && query % EMPTY_ROW_STRIDE === 0;
    const attended = !empty && (mask.hidesKeys === false || random.uniform() < ATTENDED_RATE);
    const bias = random.normal();
    data[i] = boolean ? (attended ? 1 : 0) : attended ? bias : -Infinity;
  }
  return data;
}

/** Sizes of the mask in [B,H,Nq,Nk]: 1 where it is broadcast. */
export function maskShape(
  c: AttentionCase,
  mask: MaskCase,
): readonly [batch: number, heads: number, queries: number, keys: number] {
  const [batch, head, query, key] = mask.broadcast;
  return [batch ? 1 : c.batch, head ? 1 : c.heads, query ? 1 : c.qLen, key ? 1 : c.kvLen];
}
