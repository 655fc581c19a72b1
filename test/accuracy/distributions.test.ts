/** The seeded distributions: each is what its description says, the same in both layouts, and never changes. */
import {
  applyDistribution,
  DISTRIBUTIONS,
  Operand,
  Random,
  type Distribution,
} from '../../src/accuracy/distributions.js';
import {
  accuracyInputs,
  accuracyProblem,
  type AccuracyCase,
} from '../../src/accuracy/accuracy_cases.js';
import {compareArrays} from '../../src/accuracy/metrics.js';
import {meanOf, varianceOf} from './statistics.js';

const TOKENS = 129;
const DIM = 75;

interface Operands {
  readonly q: Operand;
  readonly k: Operand;
  readonly v: Operand;
}

function make(distribution: Distribution, layout: 'HND' | 'NHD' = 'HND', seed = 1): Operands {
  const random = new Random(seed);
  const operand = (): Operand =>
    new Operand(new Float32Array(2 * TOKENS * DIM), 1, 2, TOKENS, DIM, layout, random);
  const [q, k, v] = [operand(), operand(), operand()];
  applyDistribution(distribution, q, k, v, random);
  return {q, k, v};
}

/** Values of one channel, all heads and tokens. */
const channel = ({data}: Operand, d: number): number[] => [...data].filter((_, i) => i % DIM === d);

/** Largest magnitude of each token of the first head. */
const tokenSizes = ({data}: Operand): number[] =>
  Array.from({length: TOKENS}, (_, t) =>
    Math.max(...[...data.subarray(t * DIM, (t + 1) * DIM)].map(Math.abs)),
  );

describe('Random', () => {
  it('gives N(0,1) and uniform numbers, the same for a seed', () => {
    const random = new Random(7);
    const normal = Array.from({length: 20_000}, () => random.normal());
    expect(meanOf(normal)).toBeCloseTo(0, 1);
    expect(varianceOf(normal)).toBeCloseTo(1, 1);
    expect(meanOf(normal.map((x) => x ** 4))).toBeGreaterThan(2.7);
    const uniform = Array.from({length: 20_000}, () => random.uniform());
    expect(Math.min(...uniform)).toBeGreaterThanOrEqual(0);
    expect(Math.max(...uniform)).toBeLessThan(1);
    expect(meanOf(uniform)).toBeCloseTo(0.5, 1);
    expect(new Random(7).normal()).toBe(normal[0]);
    expect(new Random(8).normal()).not.toBe(normal[0]);
  });
});

describe.each(DISTRIBUTIONS)('%s', (distribution) => {
  it('is the same in both layouts and for the same seed only', () => {
    const [hnd, nhd] = [make(distribution), make(distribution, 'NHD')];
    const at = (h: number, t: number, d: number): [number, number] => [
      (h * TOKENS + t) * DIM + d,
      (t * 2 + h) * DIM + d,
    ];
    for (const name of ['q', 'k', 'v'] as const) {
      for (const [h, t, d] of [
        [0, 0, 0],
        [1, 0, 5],
        [0, 128, 74],
        [1, 65, 37],
      ] as const) {
        const [i, j] = at(h, t, d);
        expect(hnd[name].data[i]).toBe(nhd[name].data[j]);
      }
    }
    expect(make(distribution).k.data).toEqual(hnd.k.data);
    expect(make(distribution, 'HND', 2).k.data).not.toEqual(hnd.k.data);
  });
});

describe('what each distribution is', () => {
  const normal = make('normal');

  it('normal and long: N(0,1) in every operand', () => {
    for (const {data} of Object.values(normal)) expect(varianceOf([...data])).toBeCloseTo(1, 1);
    expect(make('long').q.data).toEqual(normal.q.data);
  });

  it('k_bias: eight channels of k far off zero, nothing else changed', () => {
    const {q, k, v} = make('k_bias');
    expect([q.data, v.data]).toEqual([normal.q.data, normal.v.data]);
    const means = Array.from({length: DIM}, (_, d) => Math.abs(meanOf(channel(k, d))));
    expect(meanOf(means.slice(0, 8))).toBeGreaterThan(2);
    expect(Math.max(...means.slice(8))).toBeLessThan(0.4);
  });

  it('qv_bias: a mean on every channel of q and v', () => {
    const {q, k, v} = make('qv_bias');
    expect(k.data).toEqual(normal.k.data);
    const spread = (x: Operand) =>
      varianceOf(Array.from({length: DIM}, (_, d) => meanOf(channel(x, d))));
    expect(spread(q)).toBeGreaterThan(2);
    expect(spread(v)).toBeGreaterThan(0.5);
  });

  it('v_bias: a larger mean on every channel of v', () => {
    const {v} = make('v_bias');
    const means = Array.from({length: DIM}, (_, d) => meanOf(channel(v, d)));
    expect(varianceOf(means)).toBeGreaterThan(10);
  });

  it('outlier_channels: channels 0, 37, 74 times 6', () => {
    const {q} = make('outlier_channels');
    for (const d of [0, 37, 74]) expect(varianceOf(channel(q, d))).toBeGreaterThan(25);
    for (const d of [1, 36, 38]) expect(varianceOf(channel(q, d))).toBeLessThan(2);
  });

  it('outlier_tokens: a few tokens times 5, at least one', () => {
    for (const operand of Object.values(make('outlier_tokens'))) {
      const sizes = tokenSizes(operand);
      const outliers = sizes.filter((size) => size > 7).length;
      expect(outliers).toBeGreaterThanOrEqual(1);
      expect(outliers).toBeLessThan(12);
    }
  });

  it('peaky: q times 4', () => {
    const {q, k} = make('peaky');
    expect(q.data[10]).toBe(Math.fround(4 * (normal.q.data[10] as number)));
    expect(k.data).toEqual(normal.k.data);
  });

  it('zeros: every other 32 tokens, and the first channel of v', () => {
    const {k, v} = make('zeros');
    const sizes = tokenSizes(k);
    sizes.forEach((size, t) => expect(size === 0).toBe(Math.floor(t / 32) % 2 === 0));
    expect(new Set(channel(v, 0))).toEqual(new Set([0]));
  });
});

describe('accuracyInputs', () => {
  const c: AccuracyCase = {
    distribution: 'normal',
    batch: 2,
    heads: 2,
    kvHeads: 1,
    qLen: 3,
    kvLen: 5,
    headDim: 4,
    causal: true,
  };

  /** softmax(q kT / 2) v of one row, by the definition. */
  function row(b: number, h: number, i: number): number[] {
    const {q, k, v} = accuracyInputs(c);
    const query = [...q.subarray(((b * 2 + h) * 3 + i) * 4).slice(0, 4)];
    const token = (x: Float32Array, j: number) => [...x.subarray((b * 5 + j) * 4).slice(0, 4)];
    const weights = Array.from({length: i + 1}, (_, j) =>
      Math.exp(token(k, j).reduce((sum, x, d) => sum + x * (query[d] as number), 0) / 2),
    );
    const total = weights.reduce((a, b2) => a + b2);
    return [0, 1, 2, 3].map((d) =>
      weights.reduce((sum, w, j) => sum + (w / total) * (token(v, j)[d] as number), 0),
    );
  }

  it('comes with the answer of the definition', () => {
    const {expected} = accuracyInputs(c);
    const all = [0, 1].flatMap((b) =>
      [0, 1].flatMap((h) => [0, 1, 2].flatMap((i) => row(b, h, i))),
    );
    expect(compareArrays(all, expected).maxAbs).toBeLessThan(1e-12);
  });

  it('is the same for a seed, and its problem has the sizes of the case', () => {
    expect(accuracyInputs(c)).toEqual(accuracyInputs(c, 1));
    expect(accuracyInputs(c, 2).q).not.toEqual(accuracyInputs(c).q);
    expect(accuracyProblem(c, 'fp4')).toMatchObject({
      batch: 2,
      qHeads: 2,
      kvHeads: 1,
      qLen: 3,
      kvLen: 5,
      qkDim: 4,
      causal: 'top_left',
      windowRight: 0,
      scale: 0.5,
      recipe: {precision: 'fp4', variant: 'tuned'},
    });
  });
});
