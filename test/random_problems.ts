/**
 * Random problems: sizes around every boundary of tiles, groups and blocks, layouts with gaps, windows, masks, values that
 * are not finite. A seed and a number make the same problem everywhere, so a failure can be run again alone.
 */
import {Random} from './case_inputs.js';
import type {CaseInputs} from './case_inputs.js';
import type {Recipe} from '../src/numerics/recipes.js';
import type {AttentionProblem, MaskStrides, TokenStrides} from '../src/problem.js';

const {ceil, floor, max, min, sqrt} = Math;

/** A problem without its recipe. */
export interface RandomProblem {
  /** What it is, in one line. */
  readonly name: string;
  readonly inputs: CaseInputs;
  /** Elements of o with its gaps. */
  readonly oLength: number;
  /** Whether q, k, v or the mask hold NaN or Infinity. */
  readonly notFinite: boolean;
  problem(recipe: Recipe): AttentionProblem;
}

/** Multiples of these, one less and one more are where loops change. */
const EDGES = [4, 6, 8, 16, 32, 64, 128, 256];
/** Scores of one problem, over all heads: a reference in float64 takes a tenth of a second. */
const MOST_PRODUCTS = 4e6;

/** How many random problems to run, and from which seed: `usual` of seed 1 unless the environment says otherwise. */
export function randomRun(usual: number): {count: number; seed: number} {
  const {SAGE_RANDOM_PROBLEMS, SAGE_RANDOM_SEED} = process.env;
  const count = Number(SAGE_RANDOM_PROBLEMS ?? usual);
  const seed = Number(SAGE_RANDOM_SEED ?? 1);
  // None would pass whatever the engines do.
  if (!(Number.isInteger(count) && count > 0 && Number.isInteger(seed))) {
    throw new Error(
      `SAGE_RANDOM_PROBLEMS=${count}, SAGE_RANDOM_SEED=${seed}: integers, the first above 0`,
    );
  }
  return {count, seed};
}

/** Random choices. */
export class Draw {
  constructor(private readonly random: Random) {}
  chance(rate: number): boolean {
    return this.random.uniform() < rate;
  }
  /** least..most, both included. */
  integer(least: number, most: number): number {
    return least + floor(this.random.uniform() * (most - least + 1));
  }
  of<T>(choices: readonly T[]): T {
    return choices[this.integer(0, choices.length - 1)]!;
  }
  normal(): number {
    return this.random.normal();
  }
  /** A number of tokens or dims up to `most`: often small, often beside an edge. */
  size(most: number): number {
    if (this.chance(0.25)) return this.integer(1, min(most, 20));
    if (this.chance(0.3)) return this.integer(1, most);
    const edge = this.of(EDGES.filter((e) => e <= most));
    const factor = this.integer(1, max(1, min(5, floor(most / edge))));
    return max(1, min(most, edge * factor + this.of([-1, 0, 0, 1])));
  }
}

/** Where the rows of one operand lie: strides and elements, with gaps between tokens, heads or batches at times. */
function layOut(
  draw: Draw,
  batch: number,
  heads: number,
  tokens: number,
  dim: number,
): TokenStrides & {length: number} {
  const gap = (): number => (draw.chance(0.2) ? draw.integer(1, 9) : 0);
  let strides: TokenStrides;
  if (draw.chance(0.5)) {
    const token = dim + gap();
    const head = tokens * token + gap();
    strides = {batch: heads * head + gap(), head, token};
  } else {
    const head = dim + gap();
    const token = heads * head + gap();
    strides = {batch: tokens * token + gap(), head, token};
  }
  const last = (n: number, stride: number): number => max(0, n - 1) * stride;
  const length =
    last(batch, strides.batch) + last(heads, strides.head) + last(tokens, strides.token) + dim;
  return {...strides, length: batch * heads * tokens === 0 ? 0 : length};
}

/** Visits each element of an operand. */
export function forEachElement(
  strides: TokenStrides,
  [batch, heads, tokens, dim]: readonly [number, number, number, number],
  visit: (at: number, token: number, channel: number) => void,
): void {
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let t = 0; t < tokens; t++)
        for (let d = 0; d < dim; d++)
          visit(b * strides.batch + h * strides.head + t * strides.token + d, t, d);
}

/** An operand filled with numbers; NaN in its gaps, which nothing may read into a result. */
function fill(
  draw: Draw,
  strides: TokenStrides & {length: number},
  sizes: readonly [number, number, number, number],
  notFinite: boolean,
): Float32Array {
  const offset = draw.integer(0, 3);
  const buffer = new Float32Array(offset + strides.length).fill(NaN);
  const data = buffer.subarray(offset);
  const bias = draw.chance(0.3) ? draw.of([0.5, 3, 20]) : 0;
  const channel = Array.from({length: sizes[3]}, () => bias * draw.normal());
  const outlierToken = draw.chance(0.2) ? draw.integer(0, sizes[2]) : -1;
  const outlierChannel = draw.chance(0.2) ? draw.integer(0, sizes[3]) : -1;
  const zeros = draw.chance(0.1);
  const size = draw.chance(0.15) ? draw.of([1e-20, 1e-3, 30]) : 1;
  forEachElement(strides, sizes, (at, t, d) => {
    let x = draw.normal() + channel[d]!;
    if (t === outlierToken || d === outlierChannel) x *= 8;
    data[at] = zeros && floor(t / 32) % 2 === 0 ? 0 : size * x;
  });
  if (notFinite && strides.length > 0) {
    for (let n = draw.integer(1, 3); n > 0; n--) {
      const [batch, heads, tokens, dim] = sizes;
      const at =
        draw.integer(0, batch - 1) * strides.batch + draw.integer(0, heads - 1) * strides.head;
      data[at + draw.integer(0, tokens - 1) * strides.token + draw.integer(0, dim - 1)] = draw.of([
        NaN,
        Infinity,
        -Infinity,
      ]);
    }
  }
  return data;
}

/** A mask in [B,H,Nq,Nk] with some axes broadcast; whole rows, and whole runs of keys, are hidden at times. */
function makeMask(
  draw: Draw,
  kind: 'boolean' | 'additive',
  sizes: readonly [number, number, number, number],
  notFinite: boolean,
): {data: Float32Array | Uint8Array; strides: MaskStrides} {
  const kept = sizes.map((size) => (draw.chance(0.4) ? 1 : size));
  const [batch, head, query, key] = kept as [number, number, number, number];
  const count = batch * head * query * key;
  const offset = draw.integer(0, 3);
  const data =
    kind === 'boolean'
      ? new Uint8Array(offset + count).subarray(offset)
      : new Float32Array(offset + count).subarray(offset);
  const rate = draw.of([0.02, 0.3, 0.8, 1]);
  const emptyRows = draw.chance(0.3);
  const from = draw.chance(0.3) ? draw.integer(0, key) : 0;
  const to = draw.chance(0.3) ? draw.integer(from, key) : key;
  for (let i = 0; i < count; i++) {
    const j = i % key;
    const row = floor(i / key);
    const seen = !(emptyRows && row % 3 === 1) && j >= from && j < to && draw.chance(rate);
    data[i] =
      kind === 'boolean' ? (seen ? draw.of([1, 1, 255]) : 0) : seen ? 2 * draw.normal() : -Infinity;
  }
  if (notFinite && kind === 'additive' && count > 0)
    data[draw.integer(0, count - 1)] = draw.of([NaN, Infinity]);
  const stride = (size: number, rest: number): number => (size === 1 ? 0 : rest);
  return {
    data,
    strides: {
      batch: stride(batch, head * query * key),
      head: stride(head, query * key),
      query: stride(query, key),
      key: stride(key, 1),
    },
  };
}

/** Problem number `at` of a seed. */
export function randomProblem(seed: number, at: number): RandomProblem {
  const draw = new Draw(new Random(seed * 1_000_003 + at));
  const batch = draw.of([1, 1, 1, 2, 3]);
  const kvHeads = draw.of([1, 1, 2, 3]);
  const group = draw.of([1, 1, 1, 2, 3, 4, 8]);
  const heads = kvHeads * group;
  const usual = draw.chance(0.5);
  const qkDim = usual
    ? draw.of([32, 64, 64, 64, 96, 128, 128, 256])
    : draw.size(draw.of([40, 140, 300]));
  const vDim = draw.chance(0.75) ? qkDim : draw.size(draw.of([40, 140, 300]));
  const budget = MOST_PRODUCTS / (batch * heads * max(qkDim, vDim));
  const kvLen = draw.size(draw.of([40, 300, 600]));
  let qLen = draw.chance(0.4) ? kvLen : draw.chance(0.3) ? draw.integer(1, 24) : draw.size(300);
  qLen = max(1, min(qLen, ceil(budget / kvLen)));
  const causal = draw.of(['none', 'none', 'top_left', 'bottom_right'] as const);
  const reach = (): number => (draw.chance(0.75) ? -1 : draw.integer(0, max(qLen, kvLen)));
  const windowLeft = reach();
  const windowRight = causal === 'none' ? reach() : 0;
  const bad = draw.chance(0.2);
  const where = bad ? draw.of(['q', 'k', 'v', 'mask', 'all'] as const) : 'none';
  const spoils = (which: string): boolean => where === which || where === 'all';
  const maskKind = draw.of(['none', 'none', 'boolean', 'additive'] as const);
  const q = layOut(draw, batch, heads, qLen, qkDim);
  const k = layOut(draw, batch, kvHeads, kvLen, qkDim);
  const v = layOut(draw, batch, kvHeads, kvLen, vDim);
  const o = layOut(draw, batch, heads, qLen, vDim);
  const mask =
    maskKind === 'none'
      ? null
      : makeMask(draw, maskKind, [batch, heads, qLen, kvLen], spoils('mask'));
  const steep = draw.of([0, 0.2, 1, 1, 1, 1, 2, -1]);
  const inputs: CaseInputs = {
    q: fill(draw, q, [batch, heads, qLen, qkDim], spoils('q')),
    k: fill(draw, k, [batch, kvHeads, kvLen, qkDim], spoils('k')),
    v: fill(draw, v, [batch, kvHeads, kvLen, vDim], spoils('v')),
    mask: mask?.data ?? null,
  };
  const plain = ({batch: b, head, token}: TokenStrides): TokenStrides => ({batch: b, head, token});
  const fields: Omit<AttentionProblem, 'recipe'> = {
    batch,
    qHeads: heads,
    kvHeads,
    qLen,
    kvLen,
    qkDim,
    vDim,
    q: plain(q),
    k: plain(k),
    v: plain(v),
    o: plain(o),
    scale: steep / sqrt(qkDim),
    causal,
    windowLeft,
    windowRight,
    maskKind,
    mask: mask?.strides ?? {batch: 0, head: 0, query: 0, key: 0},
    wantLse: draw.chance(0.7),
  };
  const {q: _q, k: _k, v: _v, o: _o, ...told} = fields;
  return {
    name: `seed ${seed}, number ${at}: ${JSON.stringify({...told, bad: where, strides: [_q, _k, _v, _o].map((s) => s.token)})}`,
    inputs,
    oLength: o.length,
    notFinite: bad,
    problem: (recipe) => ({...fields, recipe}),
  };
}
