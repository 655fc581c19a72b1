/** What users get wrong, and what they must be told: one row per mistake. */
import * as tf from '@tensorflow/tfjs-core';
import type {SageErrorCode} from '../../src/index';

export type Arguments = [q: unknown, k: unknown, v: unknown, options?: unknown];

export interface Misuse {
  readonly what: string;
  readonly call: () => Arguments;
  readonly code: SageErrorCode;
  readonly argument: string;
  /** Pieces of the message: what came, what was expected, what to do. */
  readonly says: readonly string[];
}

const t = (...shape: number[]) => tf.zeros(shape);
export const good = (options?: unknown): Arguments => [
  t(2, 4, 5, 8),
  t(2, 2, 7, 8),
  t(2, 2, 7, 6),
  options,
];

const WRONG_TENSORS: readonly Misuse[] = [
  {
    what: 'undefined as k',
    call: () => [t(5, 8), undefined, t(5, 8)],
    code: 'not-a-tensor',
    argument: 'k',
    says: ['`k` is undefined', 'expected a tensor'],
  },
  {
    what: 'null as q',
    call: () => [null, t(5, 8), t(5, 8)],
    code: 'not-a-tensor',
    argument: 'q',
    says: ['`q` is null'],
  },
  {
    what: 'an object as v',
    call: () => [t(5, 8), t(5, 8), {shape: [5, 8]}],
    code: 'not-a-tensor',
    argument: 'v',
    says: ['`v` is an object of kind Object'],
  },
  {
    what: 'ragged arrays',
    call: () => [[[1, 2], [3]], t(5, 2), t(5, 2)],
    code: 'not-a-tensor',
    argument: 'q',
    says: ['`q` is [[1, 2], [3]]'],
  },
  {
    what: 'a disposed tensor',
    call: () => {
      const k = t(5, 8);
      k.dispose();
      return [t(5, 8), k, t(5, 8)];
    },
    code: 'disposed-tensor',
    argument: 'k',
    says: ['`k` has been disposed', 'tf.keep'],
  },
  {
    what: 'a disposed mask',
    call: () => {
      const mask = t(5, 5);
      mask.dispose();
      return [t(5, 8), t(5, 8), t(5, 8), {mask}];
    },
    code: 'disposed-tensor',
    argument: 'mask',
    says: ['`mask` has been disposed'],
  },
  {
    what: 'int32 q',
    call: () => [tf.zeros([5, 8], 'int32'), t(5, 8), t(5, 8)],
    code: 'unsupported-dtype',
    argument: 'q',
    says: ['`q` has dtype int32', 'expected float32', "tf.cast(q, 'float32')"],
  },
  {
    what: 'bool v',
    call: () => [t(5, 8), t(5, 8), tf.zeros([5, 8], 'bool')],
    code: 'unsupported-dtype',
    argument: 'v',
    says: ['`v` has dtype bool'],
  },
  {
    what: 'strings as k',
    call: () => [t(1, 1), [['a']], t(1, 1)],
    code: 'unsupported-dtype',
    argument: 'k',
    says: ['dtype string'],
  },
  {
    what: 'an int32 mask',
    call: () => [t(5, 8), t(5, 8), t(5, 8), {mask: tf.ones([5, 5], 'int32')}],
    code: 'unsupported-dtype',
    argument: 'mask',
    says: ['`mask` has dtype int32', 'bool (true = attend)', "tf.cast(mask, 'bool')"],
  },
  {
    what: 'rank 1',
    call: () => [t(8), t(5, 8), t(5, 8)],
    code: 'unsupported-rank',
    argument: 'q',
    says: ['rank 1 (shape [8])', 'expected rank 4, 3 or 2'],
  },
  {
    what: 'rank 5',
    call: () => [t(5, 8), t(1, 1, 1, 5, 8), t(5, 8)],
    code: 'unsupported-rank',
    argument: 'k',
    says: ['rank 5'],
  },
  {
    what: 'ranks that differ',
    call: () => [t(2, 5, 8), t(5, 8), t(2, 5, 8)],
    code: 'shape-mismatch',
    argument: 'k',
    says: ['`k` has rank 2', '`q` has rank 3', 'expandDims'],
  },
  {
    what: 'ranks that differ at v',
    call: () => [t(2, 5, 8), t(2, 5, 8), t(1, 2, 5, 8)],
    code: 'shape-mismatch',
    argument: 'v',
    says: ['`v` has rank 4'],
  },
  {
    what: 'batch of k',
    call: () => [t(2, 4, 5, 8), t(3, 4, 5, 8), t(3, 4, 5, 8)],
    code: 'shape-mismatch',
    argument: 'k',
    says: ['batch 3 (shape [3,4,5,8])', '`q` has 2 (shape [2,4,5,8])'],
  },
  {
    what: 'batch of v',
    call: () => [t(2, 4, 5, 8), t(2, 4, 5, 8), t(3, 4, 5, 8)],
    code: 'shape-mismatch',
    argument: 'v',
    says: ['batch 3'],
  },
  {
    what: 'head_dim of k',
    call: () => [t(5, 8), t(5, 16), t(5, 8)],
    code: 'shape-mismatch',
    argument: 'k',
    says: ['head_dim 16', '`q` has 8'],
  },
  {
    what: 'tokens of v',
    call: () => [t(5, 8), t(7, 8), t(6, 8)],
    code: 'shape-mismatch',
    argument: 'v',
    says: ['tokens 6', '`k` has 7'],
  },
  {
    what: 'heads of v',
    call: () => [t(4, 5, 8), t(4, 5, 8), t(2, 5, 8)],
    code: 'shape-mismatch',
    argument: 'v',
    says: ['heads 2', '`k` has 4'],
  },
  {
    what: 'heads of k that do not divide those of q',
    call: () => [t(4, 5, 8), t(3, 5, 8), t(3, 5, 8)],
    code: 'shape-mismatch',
    argument: 'k',
    says: ['`k` has 3 heads', '`q` has 4', 'multiple'],
  },
  {
    what: 'the other layout',
    call: () => [t(2, 5, 4, 8), t(2, 7, 4, 8), t(2, 7, 4, 8), {layout: 'HND'}],
    code: 'shape-mismatch',
    argument: 'k',
    says: ["layout: 'NHD'"],
  },
  {
    what: 'no heads in k',
    call: () => [t(4, 5, 8), t(0, 5, 8), t(0, 5, 8)],
    code: 'shape-mismatch',
    argument: 'k',
    says: ['`k` has 0 heads'],
  },
  {
    what: 'head_dim 0',
    call: () => [t(5, 0), t(5, 0), t(5, 8)],
    code: 'unsupported-head-dim',
    argument: 'q',
    says: ['head_dim 0', 'expected 1 to 512'],
  },
  {
    what: 'head_dim 513 of v',
    call: () => [t(5, 8), t(5, 8), t(5, 513)],
    code: 'unsupported-head-dim',
    argument: 'v',
    says: ['head_dim 513'],
  },
  {
    what: 'a mask of another length',
    call: () => good({mask: t(5, 6)}),
    code: 'shape-mismatch',
    argument: 'mask',
    says: ['`mask` has shape [5,6]', '[2,4,5,7]', '[batch, heads, q_len, kv_len]'],
  },
  {
    what: 'a mask of too many axes',
    call: () => [t(5, 8), t(7, 8), t(7, 8), {mask: t(1, 5, 7)}],
    code: 'shape-mismatch',
    argument: 'mask',
    says: ['[5,7]', '[q_len, kv_len]'],
  },
  {
    what: 'a mask with the heads of k',
    call: () => good({mask: t(2, 2, 5, 7)}),
    code: 'shape-mismatch',
    argument: 'mask',
    says: ['[2,2,5,7]'],
  },
  {
    what: 'a string as mask',
    call: () => good({mask: 'causal'}),
    code: 'not-a-tensor',
    argument: 'mask',
    says: [`\`mask\` is 'causal'`],
  },
];

const option = (
  name: string,
  value: unknown,
  says: string[],
  more: Partial<Misuse> & {also?: object} = {},
): Misuse => ({
  what: `${name}: ${String(value)}`,
  call: () => good({...more.also, [name]: value}),
  code: more.code ?? 'invalid-option',
  argument: more.argument ?? name,
  says,
});

const WRONG_OPTIONS: readonly Misuse[] = [
  {
    what: 'options that are no object',
    call: () => good(true),
    code: 'invalid-option',
    argument: 'options',
    says: ['`options` is true', '{isCausal: true}'],
  },
  {
    what: 'null options',
    call: () => good(null),
    code: 'invalid-option',
    argument: 'options',
    says: ['`options` is null'],
  },
  option('scale', NaN, ['`scale` is NaN', 'a finite number']),
  option('scale', Infinity, ['`scale` is Infinity']),
  option('scale', 3.5e38, ['`scale` is', 'within float32']),
  option('scale', '0.1', [`\`scale\` is '0.1'`]),
  option('scale', null, ['`scale` is null']),
  option('layout', 'BHND', [`'HND' or 'NHD'`]),
  option('precision', 'int9', [`\`precision\` is 'int9'`, `'auto', 'exact'`, `'fp4_fp8'`]),
  option('precision', 8, ['`precision` is 8']),
  option('precision', 'INT8', [`Did you mean 'int8'?`]),
  option('pvAccumulator', 'fp32_fp16', [`Did you mean 'fp32+fp16'?`]),
  option('isCausal', 'yes', [`true, false, 'top_left' or 'bottom_right'`]),
  option('isCausal', 1, ['`isCausal` is 1']),
  option('returnLse', 'true', ['true or false']),
  option('smoothK', 1, ['`smoothK` is 1']),
  option('smoothQ', 'on', ['`smoothQ`']),
  option('smoothV', 0, ['`smoothV`']),
  option('windowSize', 16, ['[left, right]']),
  option('windowSize', [16], ['[left, right]']),
  option('windowSize', [1, 2, 3], ['[left, right]']),
  option('windowSize', [-2, 0], ['`windowSize` is [-2, 0]', 'at least -1']),
  option('windowSize', [1.5, 0], ['integers']),
  option('windowSize', [NaN, 0], ['integers']),
  option('granularity', 'per_row', [`'per_token'`, `'per_block'`]),
  option('pvAccumulator', 'fp64', [`'fp32+fp16'`]),
  option('variant', 'official', [`'tuned' or 'paper'`]),
  option('granularity', 'per_warp', [`'per_warp'`, 'one fixed form'], {
    also: {precision: 'fp4'},
    code: 'unsupported-granularity',
  }),
  option('granularity', 'per_warp', ['per_token, per_block'], {
    also: {precision: 'int8'},
    code: 'unsupported-granularity',
  }),
  option('pvAccumulator', 'fp16', ['one fixed form'], {
    also: {precision: 'int8_int16'},
    code: 'unsupported-accumulator',
  }),
  option('variant', 'paper', ['no paper published int8_int16'], {
    also: {precision: 'int8_int16'},
    code: 'unsupported-variant',
  }),
  option('causal', true, ['no option `causal`', 'Did you mean `isCausal`?'], {
    code: 'unknown-option',
  }),
  option('is_causal', true, ['Did you mean `isCausal`?'], {code: 'unknown-option'}),
  option('smoothk', true, ['Did you mean `smoothK`?'], {code: 'unknown-option'}),
  option('precison', 'fp4', ['Did you mean `precision`?'], {code: 'unknown-option'}),
  option('attnMask', 1, ['Did you mean `mask`?'], {code: 'unknown-option'}),
  option('window', 1, ['Did you mean `windowSize`?'], {code: 'unknown-option'}),
  option('return_lse', 1, ['Did you mean `returnLse`?'], {code: 'unknown-option'}),
  option('dropoutProbability', 0.1, [`The options are 'isCausal'`], {code: 'unknown-option'}),
  option('signal', undefined, ['no option `signal`'], {code: 'unknown-option'}),
];

/** Every mistake. */
export const MISUSES: readonly Misuse[] = [...WRONG_TENSORS, ...WRONG_OPTIONS];
