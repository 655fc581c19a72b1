/**
 * The one case table: sizes, layouts, masks, distributions and tolerances. Correctness of every engine, gradients,
 * benchmarks and the support matrix are all made from it; a new feature is a new row first.
 */
import type {Precision, Recipe} from '../src/numerics/recipes.js';
import type {AttentionProblem, CausalKind, TokenStrides} from '../src/problem.js';
import type {Distribution} from '../src/accuracy/distributions.js';
import {RELATIVE_L1_BOUNDS, toleranceOf} from '../src/accuracy/tolerances.js';
import {maskShape} from './case_inputs.js';

export {makeInputs, makeLseGradient, makeOutputGradient, maskShape, Random} from './case_inputs.js';
export type {CaseInputs} from './case_inputs.js';

export type {Distribution};

/** What a case is used for. */
export type CaseTag =
  /** Small enough to run under every recipe against a float64 reference. */
  | 'fast'
  /** Also used for gradients. */
  | 'grad'
  /** Accuracy against float64 with many tokens. */
  | 'accuracy'
  /** Benchmarks only: too large for a float64 reference. */
  | 'bench';

export interface MaskCase {
  readonly kind: 'boolean' | 'additive';
  /** Which of batch, head, query and key the mask has no axis for. */
  readonly broadcast: readonly [batch: boolean, head: boolean, query: boolean, key: boolean];
  /** Every fifth query attends to nothing. */
  readonly emptyRows: boolean;
  /** false: nothing is hidden beside empty rows. */
  readonly hidesKeys: boolean;
}

export interface AttentionCase {
  readonly name: string;
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly qLen: number;
  readonly kvLen: number;
  /** head_dim of q and k. */
  readonly headDim: number;
  /** head_dim of v and o. */
  readonly vDim: number;
  readonly layout: 'HND' | 'NHD';
  readonly causal: CausalKind;
  /** [left, right], -1 = no limit. */
  readonly windowSize: readonly [left: number, right: number];
  readonly mask: MaskCase | null;
  /** null: 1 / sqrt(headDim). */
  readonly scale: number | null;
  readonly wantLse: boolean;
  readonly distribution: Distribution;
  /** Elements in front of q, k, v and mask in their buffers: views with a byte offset. */
  readonly viewOffset: number;
  readonly tags: readonly CaseTag[];
}

type CaseChanges = Partial<Omit<AttentionCase, 'name'>> & {readonly length?: number};

/** A case of one head, 33 tokens and head_dim 16, but for `changes`. `length` sets qLen and kvLen, headDim also vDim, heads also kvHeads. */
function define(name: string, changes: CaseChanges): AttentionCase {
  const {length = 33, ...fields} = changes;
  const heads = fields.heads ?? 1;
  const headDim = fields.headDim ?? 16;
  return {
    name,
    batch: 1,
    heads,
    kvHeads: heads,
    qLen: length,
    kvLen: length,
    headDim,
    vDim: headDim,
    layout: 'HND',
    causal: 'none',
    windowSize: [-1, -1],
    mask: null,
    scale: null,
    wantLse: true,
    distribution: 'normal',
    viewOffset: 0,
    tags: ['fast'],
    ...fields,
  };
}

const FAST_AND_GRAD: readonly CaseTag[] = ['fast', 'grad'];

const SIZES: readonly AttentionCase[] = [
  define('N 1', {length: 1, headDim: 64, tags: FAST_AND_GRAD}),
  define('N 17', {batch: 2, heads: 2, length: 17, headDim: 32, tags: FAST_AND_GRAD}),
  define('N 127', {length: 127, headDim: 64, tags: FAST_AND_GRAD}),
  define('N 129', {batch: 2, heads: 2, length: 129, headDim: 64, tags: FAST_AND_GRAD}),
  define('N 300', {length: 300, headDim: 64, tags: FAST_AND_GRAD}),
  ...[1, 3, 8, 31, 64, 80, 96, 128, 192, 256, 512].map((headDim) =>
    define(`head_dim ${headDim}`, {length: 70, headDim, tags: FAST_AND_GRAD}),
  ),
  define('v wider than k', {length: 45, headDim: 31, vDim: 80, tags: FAST_AND_GRAD}),
  define('v narrower than k', {length: 45, headDim: 64, vDim: 24, tags: FAST_AND_GRAD}),
  define('no lse', {length: 20, wantLse: false}),
  define('scale 0.3', {length: 65, scale: 0.3, tags: FAST_AND_GRAD}),
  define('scale 0', {length: 40, scale: 0}),
  define('negative scale', {length: 40, scale: -0.2, tags: FAST_AND_GRAD}),
];

const LENGTHS: readonly AttentionCase[] = [
  define('one query of 300 keys', {qLen: 1, kvLen: 300, headDim: 64, tags: FAST_AND_GRAD}),
  define('17 queries, 129 keys', {qLen: 17, kvLen: 129, headDim: 32, tags: FAST_AND_GRAD}),
  define('129 queries, 17 keys', {qLen: 129, kvLen: 17, headDim: 32, tags: FAST_AND_GRAD}),
  define('batch 0', {batch: 0, length: 5, tags: FAST_AND_GRAD}),
  define('no queries', {qLen: 0, kvLen: 5, tags: FAST_AND_GRAD}),
  define('no keys', {batch: 2, heads: 2, qLen: 5, kvLen: 0, tags: FAST_AND_GRAD}),
  define('no tokens', {length: 0, tags: FAST_AND_GRAD}),
];

const HEADS: readonly AttentionCase[] = [
  define('grouped heads', {batch: 2, heads: 6, kvHeads: 2, length: 40, tags: FAST_AND_GRAD}),
  define('one key/value head', {
    heads: 4,
    kvHeads: 1,
    length: 129,
    headDim: 32,
    tags: FAST_AND_GRAD,
  }),
  define('grouped heads, NHD, causal', {
    batch: 2,
    heads: 4,
    kvHeads: 2,
    qLen: 33,
    kvLen: 50,
    layout: 'NHD',
    causal: 'bottom_right',
    tags: FAST_AND_GRAD,
  }),
];

const LAYOUTS: readonly AttentionCase[] = [
  define('NHD', {batch: 2, heads: 3, length: 65, headDim: 24, layout: 'NHD', tags: FAST_AND_GRAD}),
  define('views', {batch: 2, heads: 2, length: 33, viewOffset: 3, tags: FAST_AND_GRAD}),
  define('NHD views', {
    heads: 2,
    kvHeads: 1,
    length: 33,
    layout: 'NHD',
    viewOffset: 1,
    mask: maskCase('additive', '.H.K'),
    tags: FAST_AND_GRAD,
  }),
];

const CAUSAL: readonly AttentionCase[] = (['top_left', 'bottom_right'] as const).flatMap(
  (causal) => [
    define(`${causal}, N 1`, {length: 1, causal}),
    define(`${causal}, N 129`, {heads: 2, length: 129, headDim: 64, causal, tags: FAST_AND_GRAD}),
    define(`${causal}, N 300`, {length: 300, headDim: 32, causal, tags: FAST_AND_GRAD}),
    define(`${causal}, 17 queries, 129 keys`, {qLen: 17, kvLen: 129, causal, tags: FAST_AND_GRAD}),
    define(`${causal}, 129 queries, 17 keys`, {qLen: 129, kvLen: 17, causal, tags: FAST_AND_GRAD}),
  ],
);

const WINDOWS: readonly AttentionCase[] = [
  define('window 16 left', {length: 140, windowSize: [16, -1], tags: FAST_AND_GRAD}),
  define('window 8 right', {length: 140, windowSize: [-1, 8], tags: FAST_AND_GRAD}),
  define('window 5 left, 3 right', {length: 300, windowSize: [5, 3], tags: FAST_AND_GRAD}),
  define('window of the diagonal', {length: 140, windowSize: [0, 0], tags: FAST_AND_GRAD}),
  define('window 20 left, causal', {
    length: 140,
    windowSize: [20, 4],
    causal: 'top_left',
    tags: FAST_AND_GRAD,
  }),
  define('window 20 left, bottom right', {
    qLen: 70,
    kvLen: 200,
    windowSize: [20, -1],
    causal: 'bottom_right',
    tags: FAST_AND_GRAD,
  }),
  define('window that some rows miss', {
    qLen: 150,
    kvLen: 40,
    windowSize: [6, 2],
    tags: FAST_AND_GRAD,
  }),
];

const MASK_AXES = ['BHQK', '.HQK', 'B.QK', 'BH.K', 'BHQ.', '..QK', '...K', '..Q.', 'B..K', '....'];

const MASKS: readonly AttentionCase[] = (['boolean', 'additive'] as const).flatMap((kind) => [
  ...MASK_AXES.map((axes) =>
    define(`${kind} mask ${axes}`, {
      batch: 2,
      heads: 2,
      qLen: 19,
      kvLen: 35,
      mask: maskCase(kind, axes),
      tags: FAST_AND_GRAD,
    }),
  ),
  define(`${kind} mask, empty rows`, {
    heads: 2,
    length: 140,
    mask: maskCase(kind, '..QK', {emptyRows: true}),
    tags: FAST_AND_GRAD,
  }),
  define(`${kind} mask, causal, grouped heads`, {
    heads: 4,
    kvHeads: 2,
    length: 66,
    causal: 'top_left',
    mask: maskCase(kind, '.HQK'),
    tags: FAST_AND_GRAD,
  }),
]);

const DISTRIBUTIONS: readonly AttentionCase[] = (
  ['k_bias', 'qv_bias', 'v_bias', 'outlier_channels', 'outlier_tokens', 'peaky', 'zeros'] as const
).map((distribution) => define(distribution, {length: 200, headDim: 64, distribution}));

const ACCURACY: readonly AttentionCase[] = [
  ...[64, 128].flatMap((headDim) =>
    (['normal', 'k_bias'] as const).map((distribution) =>
      define(`N 1000, head_dim ${headDim}, ${distribution}`, {
        heads: 2,
        length: 1000,
        headDim,
        distribution,
        tags: ['accuracy'],
      }),
    ),
  ),
  define('N 4000', {length: 4000, headDim: 64, distribution: 'long', tags: ['accuracy']}),
];

const BENCH: readonly AttentionCase[] = [
  define('one token', {length: 1, headDim: 64, tags: ['bench']}),
  define('N 16', {length: 16, headDim: 64, tags: ['bench']}),
  ...[512, 1024, 2048, 4096].flatMap((length) =>
    (['none', 'top_left'] as const).map((causal) =>
      define(`N ${length}, head_dim 64${causal === 'none' ? '' : ', causal'}`, {
        heads: 4,
        length,
        headDim: 64,
        causal,
        tags: ['bench'],
      }),
    ),
  ),
  define('N 2048, head_dim 128', {heads: 4, length: 2048, headDim: 128, tags: ['bench']}),
  define('one query of 2048 keys', {
    heads: 8,
    kvHeads: 2,
    qLen: 1,
    kvLen: 2048,
    headDim: 64,
    tags: ['bench'],
  }),
];

/** Every case. Names are unique. */
export const CASES: readonly AttentionCase[] = [
  ...SIZES,
  ...LENGTHS,
  ...HEADS,
  ...LAYOUTS,
  ...CAUSAL,
  ...WINDOWS,
  ...MASKS,
  ...DISTRIBUTIONS,
  ...ACCURACY,
  ...BENCH,
];

/** The cases that have a tag. */
export function casesTagged(tag: CaseTag): readonly AttentionCase[] {
  return CASES.filter((c) => c.tags.includes(tag));
}

/** A mask with the axes spelled: 'BHQK' has all, '.' stands for a broadcast one. */
function maskCase(
  kind: MaskCase['kind'],
  axes: string,
  changes: Partial<Pick<MaskCase, 'emptyRows' | 'hidesKeys'>> = {},
): MaskCase {
  const broadcast = [...axes].map((axis) => axis === '.') as [boolean, boolean, boolean, boolean];
  return {kind, broadcast, emptyRows: false, hidesKeys: true, ...changes};
}

/** The problem that a case means under a recipe. Strides count from the first element of each view. */
export function problemOf(c: AttentionCase, recipe: Recipe): AttentionProblem {
  const strides = (heads: number, tokens: number, dim: number): TokenStrides =>
    c.layout === 'HND'
      ? {batch: heads * tokens * dim, head: tokens * dim, token: dim}
      : {batch: heads * tokens * dim, head: dim, token: heads * dim};
  const [left, right] = c.windowSize;
  return {
    batch: c.batch,
    qHeads: c.heads,
    kvHeads: c.kvHeads,
    qLen: c.qLen,
    kvLen: c.kvLen,
    qkDim: c.headDim,
    vDim: c.vDim,
    q: strides(c.heads, c.qLen, c.headDim),
    k: strides(c.kvHeads, c.kvLen, c.headDim),
    v: strides(c.kvHeads, c.kvLen, c.vDim),
    o: strides(c.heads, c.qLen, c.vDim),
    scale: c.scale ?? 1 / Math.sqrt(c.headDim),
    causal: c.causal,
    windowLeft: left,
    windowRight: c.causal === 'none' ? right : 0,
    maskKind: c.mask ? c.mask.kind : 'none',
    mask: c.mask ? maskStrides(c, c.mask) : {batch: 0, head: 0, query: 0, key: 0},
    wantLse: c.wantLse,
    recipe,
  };
}

function maskStrides(c: AttentionCase, mask: MaskCase): AttentionProblem['mask'] {
  const [, heads, queries, keys] = maskShape(c, mask);
  const [batch, head, query, key] = mask.broadcast;
  return {
    batch: batch ? 0 : heads * queries * keys,
    head: head ? 0 : queries * keys,
    query: query ? 0 : keys,
    key: key ? 0 : 1,
  };
}

/** Shapes of q, k, v and o as tensors of rank 4 in the case's layout. */
export function shapesOf(c: AttentionCase): Record<'q' | 'k' | 'v' | 'o', number[]> {
  const shape = (heads: number, tokens: number, dim: number): number[] =>
    c.layout === 'HND' ? [c.batch, heads, tokens, dim] : [c.batch, tokens, heads, dim];
  return {
    q: shape(c.heads, c.qLen, c.headDim),
    k: shape(c.kvHeads, c.kvLen, c.headDim),
    v: shape(c.kvHeads, c.kvLen, c.vDim),
    o: shape(c.heads, c.qLen, c.vDim),
  };
}

/** Largest relative L1 of o against float64 attention: N(0,1), head_dim 64 and 128, 1,000 tokens. */
export const RELATIVE_L1 = RELATIVE_L1_BOUNDS;

/** Largest relative L1 of o of a case, with the recipe's default choices, against float64 attention. */
export function relativeL1Bound(c: AttentionCase, precision: Precision): number {
  return toleranceOf(precision, c.distribution, Math.min(c.qLen, c.kvLen)).relativeL1;
}
