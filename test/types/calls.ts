/** What the functions of the main entry take and return. */
import * as tf from '@tensorflow/tfjs-core';
import {
  compareAttention,
  configureSageAttention,
  getSageAttentionInfo,
  install,
  sageAttention,
  sageAttentionAsync,
  SageAttentionError,
} from 'tfjs-sage-attention';

type Same<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** Compiles only when the two types are the same. */
function same<A, B>(proof: Same<A, B>): void {
  void proof;
}

declare const q: tf.Tensor4D;
declare const anyRank: tf.Tensor;
declare const wish: boolean;

const o = sageAttention(q, q, q);
same<typeof o, tf.Tensor4D>(true);
const asked = sageAttention(q, q, q, {returnLse: true, isCausal: 'bottom_right'});
same<typeof asked, [o: tf.Tensor4D, lse: tf.Tensor]>(true);
const notAsked = sageAttention(q, q, q, {returnLse: false, precision: 'fp4'});
same<typeof notAsked, tf.Tensor4D>(true);
export const perhaps: tf.Tensor | [tf.Tensor, tf.Tensor] = sageAttention(q, q, q, {
  returnLse: wish,
});
// @ts-expect-error: whether lse comes is known at run time only
export const certain: tf.Tensor4D = sageAttention(q, q, q, {returnLse: wish});
const arrays = sageAttention([[1, 2]], [[1, 2]], [[3, 4]]);
same<typeof arrays, tf.Tensor>(true);
const general = sageAttention(anyRank, anyRank, anyRank);
same<typeof general, tf.Tensor>(true);
// @ts-expect-error: v is missing
sageAttention(q, q);
// @ts-expect-error: misspelt option
sageAttention(q, q, q, {isCasual: true});
// @ts-expect-error: options are an object
sageAttention(q, q, q, true);
// @ts-expect-error: q is a tensor or nested arrays
sageAttention('q', null, q);

export const chained: tf.Tensor = q.sageAttention(q, q, {scale: 0.5});
export const chainedPair: [tf.Tensor, tf.Tensor] = q.sageAttention(q, q, {returnLse: true});
// @ts-expect-error: misspelt option
q.sageAttention(q, q, {maks: q});

export const soon: Promise<tf.Tensor> = sageAttentionAsync(q, q, q, {
  signal: new AbortController().signal,
});
export const soonBoth: Promise<[tf.Tensor, tf.Tensor]> = sageAttentionAsync(q, q, q, {
  returnLse: true,
});
// @ts-expect-error: a signal, not its controller
void sageAttentionAsync(q, q, q, {signal: new AbortController()});
// @ts-expect-error: only the asynchronous form can be aborted
sageAttention(q, q, q, {signal: new AbortController().signal});

export async function compare(): Promise<number> {
  const metrics = await compareAttention(q, q, q, {precision: 'int8_fp8'});
  const {cosine, relativeL1, rmse, maxAbs} = metrics;
  // @ts-expect-error: not a metric
  void metrics.psnr;
  return cosine + relativeL1 + rmse + maxAbs;
}

const before = configureSageAttention({
  threads: 2,
  isa: 'avx2',
  engine: 'native',
  precision: 'int8',
});
configureSageAttention(before);
configureSageAttention({threads: 'auto', isa: 'auto', engine: 'auto', precision: 'auto'});
// @ts-expect-error: not an instruction set that a path exists for
configureSageAttention({isa: 'sse2'});
// @ts-expect-error: not an engine
configureSageAttention({engine: 'gpu'});
// @ts-expect-error: a number or 'auto'
configureSageAttention({threads: '2'});
// @ts-expect-error: misspelt
configureSageAttention({thread: 2});

const info = getSageAttentionInfo();
export const engines: readonly {name: string; available: boolean; reason: string}[] = info.engines;
export const choices: readonly {backend: string; reason: string}[] = info.choices;
// @ts-expect-error: what runs here cannot be assigned
info.engines = [];

install(tf);

export function explain(error: unknown): string {
  if (!(error instanceof SageAttentionError)) return '';
  const argument: string | null = error.argument;
  if (error.code === 'unknown-option') return error.hint;
  // @ts-expect-error: not a code
  if (error.code === 'no-such-code') return '';
  return `${argument ?? ''} ${error.docsUrl}`;
}
