/** Checks of q, k, v and mask that concern each alone (kind, dtype, rank) and together (shapes). */
import * as tf from '@tensorflow/tfjs-core';
import type {MaskStrides, TokenStrides} from '../problem.js';
import {describeValue, SageAttentionError} from '../runtime/errors.js';
import type {Layout} from './options.js';

/** The largest head_dim that every engine computes. */
export const MAX_HEAD_DIM = 512;

type QkvName = 'q' | 'k' | 'v';

/** A float32 tensor of rank 2 to 4 from what the caller passed as `name`. */
export function attentionTensor(operation: string, name: QkvName, value: unknown): tf.Tensor {
  const tensor = toTensor(operation, name, value);
  if (tensor.dtype !== 'float32') {
    throw new SageAttentionError({
      code: 'unsupported-dtype',
      argument: name,
      message: `${operation}: \`${name}\` has dtype ${tensor.dtype}, expected float32.`,
      hint: `Convert it first: tf.cast(${name}, 'float32').`,
    });
  }
  const {rank} = tensor;
  if (rank < 2 || rank > 4) {
    throw new SageAttentionError({
      code: 'unsupported-rank',
      argument: name,
      message:
        `${operation}: \`${name}\` has rank ${rank} (shape ${shapeText(tensor.shape)}), ` +
        'expected rank 4, 3 or 2: [batch, heads, tokens, head_dim], [heads, tokens, head_dim] ' +
        'or [tokens, head_dim].',
      hint: 'Reshape it so that head_dim is the last axis.',
    });
  }
  return tensor;
}

/** A bool or float32 tensor from what the caller passed as `mask`. */
export function maskTensor(operation: string, value: unknown): tf.Tensor {
  const mask = toTensor(operation, 'mask', value);
  if (mask.dtype !== 'bool' && mask.dtype !== 'float32') {
    throw new SageAttentionError({
      code: 'unsupported-dtype',
      argument: 'mask',
      message:
        `${operation}: \`mask\` has dtype ${mask.dtype}, ` +
        'expected bool (true = attend) or float32 (added to scale·q·k).',
      hint: "A mask of 0 and 1 becomes bool by tf.cast(mask, 'bool'); additive values become float32 by tf.cast(mask, 'float32').",
    });
  }
  return mask;
}

function toTensor(operation: string, name: string, value: unknown): tf.Tensor {
  if (value instanceof tf.Tensor) {
    if (!value.isDisposed) return value;
    throw new SageAttentionError({
      code: 'disposed-tensor',
      argument: name,
      message: `${operation}: \`${name}\` has been disposed.`,
      hint: 'Call tf.keep() on it, or return it from the tf.tidy() that made it.',
    });
  }
  const arrayLike =
    Array.isArray(value) ||
    (ArrayBuffer.isView(value) && !(value instanceof DataView)) ||
    typeof value === 'number' ||
    typeof value === 'boolean';
  // tfjs takes ragged arrays by the shape of their first rows, with values missing behind it.
  if (!arrayLike || !isRegular(value)) throw notATensor(operation, name, value);
  try {
    return tf.tensor(value as tf.TensorLike);
  } catch (cause) {
    throw notATensor(operation, name, value, cause);
  }
}

/** Whether all rows of a nested array have one shape. */
function isRegular(value: unknown): boolean {
  if (!Array.isArray(value)) return true;
  const [first] = value as unknown[];
  const length = lengthOf(first);
  return value.every((row) => lengthOf(row) === length && isRegular(row) && sameShape(row, first));
}

function sameShape(a: unknown, b: unknown): boolean {
  if (!Array.isArray(a) || !Array.isArray(b)) return lengthOf(a) === lengthOf(b);
  return a.length === b.length && (a.length === 0 || sameShape(a[0], b[0]));
}

/** Length of an array or typed array, null for a number. */
function lengthOf(value: unknown): number | null {
  return Array.isArray(value) || ArrayBuffer.isView(value)
    ? (value as unknown as ArrayLike<unknown>).length
    : null;
}

function notATensor(
  operation: string,
  name: string,
  value: unknown,
  cause?: unknown,
): SageAttentionError {
  return new SageAttentionError({
    code: 'not-a-tensor',
    argument: name,
    message: `${operation}: \`${name}\` is ${describeValue(value)}, expected a tensor or a nested array of numbers.`,
    hint: 'Make one with tf.tensor(values, shape).',
    cause,
  });
}

/** Sizes of one call; batch and heads are 1 where the rank has no such axis. */
export interface AttentionSizes {
  readonly batch: number;
  readonly qHeads: number;
  readonly kvHeads: number;
  readonly qLen: number;
  readonly kvLen: number;
  readonly qkDim: number;
  readonly vDim: number;
}

/** Sizes of q, k and v after checking that they fit together. A mismatch names the later argument. */
export function attentionSizes(
  operation: string,
  q: tf.Tensor,
  k: tf.Tensor,
  v: tf.Tensor,
  layout: Layout,
): AttentionSizes {
  const {rank} = q;
  const qs = q.shape;
  const ks = k.shape;
  const vs = v.shape;
  if (k.rank !== rank) throw rankMismatch(operation, 'k', k, q);
  if (v.rank !== rank) throw rankMismatch(operation, 'v', v, q);
  const tokenAxis = layout === 'NHD' ? rank - 3 : rank - 2;
  const headAxis = layout === 'NHD' ? rank - 2 : rank - 3;
  // Without a head axis (rank 2) both layouts are [tokens, head_dim].
  const tokens = (shape: number[]) => shape[rank === 2 ? 0 : tokenAxis] ?? 1;
  const heads = (shape: number[]) => (rank === 2 ? 1 : (shape[headAxis] ?? 1));
  const batches = (shape: number[]) => (rank === 4 ? (shape[0] ?? 1) : 1);
  const sizes = {
    batch: batches(qs),
    qHeads: heads(qs),
    kvHeads: heads(ks),
    qLen: tokens(qs),
    kvLen: tokens(ks),
    qkDim: qs[rank - 1] ?? 0,
    vDim: vs[rank - 1] ?? 0,
  };
  const differs = (name: 'k' | 'v', axis: string, got: number, other: QkvName, wanted: number) =>
    mismatch(
      operation,
      name,
      `\`${name}\` has ${axis} ${got} (shape ${shapeText(name === 'k' ? ks : vs)}) but \`${other}\` has ${wanted} ` +
        `(shape ${shapeText(other === 'q' ? qs : ks)})`,
      layout,
    );
  if (sizes.batch !== batches(ks)) throw differs('k', 'batch', batches(ks), 'q', sizes.batch);
  if (sizes.batch !== batches(vs)) throw differs('v', 'batch', batches(vs), 'q', sizes.batch);
  const kDim = ks[rank - 1] ?? 0;
  if (sizes.qkDim !== kDim) throw differs('k', 'head_dim', kDim, 'q', sizes.qkDim);
  if (sizes.kvLen !== tokens(vs)) throw differs('v', 'tokens', tokens(vs), 'k', sizes.kvLen);
  if (sizes.kvHeads !== heads(vs)) throw differs('v', 'heads', heads(vs), 'k', sizes.kvHeads);
  const {qHeads, kvHeads} = sizes;
  if (qHeads !== kvHeads && (kvHeads === 0 || qHeads % kvHeads !== 0)) {
    throw mismatch(
      operation,
      'k',
      `\`k\` has ${kvHeads} heads (shape ${shapeText(ks)}) and \`q\` has ${qHeads} (shape ${shapeText(qs)}), ` +
        'expected the heads of q to be a multiple of those of k',
      layout,
    );
  }
  requireHeadDim(operation, 'q', q, sizes.qkDim);
  requireHeadDim(operation, 'v', v, sizes.vDim);
  return sizes;
}

function requireHeadDim(operation: string, name: QkvName, tensor: tf.Tensor, dim: number): void {
  if (dim >= 1 && dim <= MAX_HEAD_DIM) return;
  throw new SageAttentionError({
    code: 'unsupported-head-dim',
    argument: name,
    message: `${operation}: \`${name}\` has head_dim ${dim} (shape ${shapeText(tensor.shape)}), expected 1 to ${MAX_HEAD_DIM}.`,
    hint: 'head_dim is the last axis in every layout; split wider vectors into heads.',
  });
}

/** Element strides of a contiguous [B,H,N,D] (or NHD) tensor. */
export function tokenStrides(
  heads: number,
  tokens: number,
  dim: number,
  layout: Layout,
): TokenStrides {
  const batch = heads * tokens * dim;
  return layout === 'NHD'
    ? {batch, head: dim, token: heads * dim}
    : {batch, head: tokens * dim, token: dim};
}

/** Strides of a mask of shape `shape`, aligned from the right with [B,H,Nq,Nk] (or its last `rank` axes). */
export function maskStrides(
  operation: string,
  shape: readonly number[],
  rank: number,
  {batch, qHeads, qLen, kvLen}: Pick<AttentionSizes, 'batch' | 'qHeads' | 'qLen' | 'kvLen'>,
): MaskStrides {
  const full = [batch, qHeads, qLen, kvLen];
  const strides = [0, 0, 0, 0];
  let stride = 1;
  let fits = shape.length <= rank;
  for (let fromRight = 1; fromRight <= shape.length && fits; fromRight += 1) {
    const size = shape[shape.length - fromRight] ?? 1;
    if (size !== 1) {
      fits = size === full[4 - fromRight];
      strides[4 - fromRight] = stride;
    }
    stride *= size;
  }
  if (!fits) {
    const axes = ['batch', 'heads', 'q_len', 'kv_len'].slice(4 - rank).join(', ');
    throw new SageAttentionError({
      code: 'shape-mismatch',
      argument: 'mask',
      message:
        `${operation}: \`mask\` has shape ${shapeText(shape)}, ` +
        `expected a shape that broadcasts to ${shapeText(full.slice(4 - rank))} ([${axes}]).`,
      hint: 'Each axis, counted from the last, is 1 or the size there; the order of axes is the same in every layout.',
    });
  }
  const [b = 0, h = 0, i = 0, j = 0] = strides;
  return {batch: b, head: h, query: i, key: j};
}

function rankMismatch(
  operation: string,
  name: 'k' | 'v',
  tensor: tf.Tensor,
  q: tf.Tensor,
): SageAttentionError {
  return new SageAttentionError({
    code: 'shape-mismatch',
    argument: name,
    message:
      `${operation}: \`${name}\` has rank ${tensor.rank} (shape ${shapeText(tensor.shape)}) ` +
      `but \`q\` has rank ${q.rank} (shape ${shapeText(q.shape)}), expected the same rank.`,
    hint: 'Add the missing axes with reshape() or expandDims().',
  });
}

function mismatch(
  operation: string,
  argument: 'k' | 'v',
  what: string,
  layout: Layout,
): SageAttentionError {
  const axes = layout === 'HND' ? 'heads, tokens' : 'tokens, heads';
  const other =
    layout === 'HND' ? `'NHD' for [batch, tokens, heads` : `'HND' for [batch, heads, tokens`;
  return new SageAttentionError({
    code: 'shape-mismatch',
    argument,
    message: `${operation}: ${what}.`,
    hint: `Layout '${layout}' is [batch, ${axes}, head_dim]; pass layout: ${other}, head_dim].`,
  });
}

function shapeText(shape: readonly number[]): string {
  return `[${shape.join(',')}]`;
}
