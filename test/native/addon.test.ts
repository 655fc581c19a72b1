/** The addon's synchronous calls: what it accepts, what it refuses, and that it reads and writes arrays where they lie. */
import {CASES, makeInputs, problemOf, type AttentionCase} from '../cases.js';
import {exactAttention} from '../../src/numerics/reference.js';
import {isRefusal, resolveRecipe, type Recipe} from '../../src/numerics/recipes.js';
import {encodeProblem, PROBLEM_WORDS, type AttentionProblem} from '../../src/problem.js';
import {ISAS} from '../../src/runtime/config.js';
import {loadAddon} from '../../src/runtime/load_addon.js';

const {addon} = loadAddon();
if (addon === null) throw new Error('build/Release holds no addon: npm run build:native');

const exact = resolveRecipe('exact', {}) as Recipe;

function caseNamed(name: string): AttentionCase {
  const found = CASES.find((c) => c.name === name);
  if (found === undefined) throw new Error(`no case ${name}`);
  return found;
}

const encode = (problem: AttentionProblem): Float64Array =>
  encodeProblem(problem, new Float64Array(PROBLEM_WORDS));

function largestError(actual: Float32Array, expected: Float64Array): number {
  let worst = 0;
  expected.forEach((x, i) => {
    worst = Math.max(worst, Math.abs(x - actual[i]!));
  });
  return worst;
}

/** Code of the plain error object that a call throws; it is no `Error` of this realm. */
function codeOf(call: () => void): unknown {
  try {
    call();
  } catch (error) {
    return (error as {code?: unknown}).code;
  }
  return 'no error';
}

const small = caseNamed('N 17');
const problem = problemOf(small, exact);
const {q, k, v} = makeInputs(small, 1);
const expected = exactAttention(problem, q, k, v, null);
const words = encode(problem);
const rows = problem.batch * problem.qHeads * problem.qLen;

beforeEach(() => {
  addon.configure({threads: 1});
});

describe('buffers', () => {
  test('plain arrays', () => {
    const o = new Float32Array(expected.o.length);
    const lse = new Float32Array(rows);
    addon.forward(words, q, k, v, null, o, lse);
    expect(largestError(o, expected.o)).toBeLessThan(1e-5);
    expect(largestError(lse, expected.lse)).toBeLessThan(1e-5);
  });

  test.each([1, 3, 16, 17])('views with an offset of %i elements, surroundings untouched', (offset) => {
    const shifted = (x: Float32Array): Float32Array => {
      const all = new Float32Array(x.length + 2 * offset).fill(NaN);
      all.set(x, offset);
      return all.subarray(offset, offset + x.length);
    };
    const o = shifted(new Float32Array(expected.o.length));
    const lse = shifted(new Float32Array(rows));
    addon.forward(words, shifted(q), shifted(k), shifted(v), null, o, lse);
    expect(largestError(o, expected.o)).toBeLessThan(1e-5);
    expect(largestError(lse, expected.lse)).toBeLessThan(1e-5);
    const whole = new Float32Array(o.buffer);
    expect([...whole.subarray(0, offset), ...whole.subarray(offset + o.length)]).toEqual(
      new Array(2 * offset).fill(NaN),
    );
  });

  test('views of a WebAssembly memory, before and after it grows', () => {
    const memory = new WebAssembly.Memory({initial: 4, maximum: 64});
    const inside = (x: ArrayLike<number>, byteOffset: number): Float32Array => {
      const view = new Float32Array(memory.buffer, byteOffset, x.length);
      view.set(x);
      return view;
    };
    const run = (): number => {
      const bytes = q.byteLength;
      const o = inside(new Float32Array(expected.o.length), 16 + 3 * bytes);
      addon.forward(
        words,
        inside(q, 4),
        inside(k, 8 + bytes),
        inside(v, 12 + 2 * bytes),
        null,
        o,
        inside(new Float32Array(rows), 20 + 4 * bytes),
      );
      return largestError(o, expected.o);
    };
    expect(run()).toBeLessThan(1e-5);
    const stale = new Float32Array(memory.buffer, 4, q.length);
    memory.grow(8);
    expect(run()).toBeLessThan(1e-5);
    // The old view lost its memory: refused, not read.
    const o = new Float32Array(expected.o.length);
    expect(codeOf(() => addon.forward(words, stale, k, v, null, o, new Float32Array(rows)))).toBe(
      'SAGE_INVALID_ARGUMENT',
    );
  });

  test('inputs are not changed', () => {
    const copies = [q, k, v].map((x) => x.slice());
    addon.forward(words, q, k, v, null, new Float32Array(expected.o.length), new Float32Array(rows));
    expect([q, k, v]).toEqual(copies);
  });
});

describe('refused', () => {
  const call = (changes: {
    [name in 'q' | 'k' | 'v' | 'mask' | 'o' | 'lse']?: unknown;
  }, of = words): unknown => {
    const given = {
      q,
      k,
      v,
      mask: null,
      o: new Float32Array(expected.o.length),
      lse: new Float32Array(rows),
      ...changes,
    } as Record<string, Float32Array>;
    return codeOf(() => {
      addon.forward(of, given['q']!, given['k']!, given['v']!, given['mask']!, given['o']!, given['lse']!);
    });
  };
  const masked = (maskKind: 'boolean' | 'additive'): Float64Array =>
    encode({...problem, maskKind, mask: {batch: 0, head: 0, query: 17, key: 1}});

  test('the call as it should be is not', () => {
    expect(call({})).toBe('no error');
    expect(call({mask: new Uint8Array(289)}, masked('boolean'))).toBe('no error');
    expect(call({mask: new Float32Array(289)}, masked('additive'))).toBe('no error');
  });

  test.each(['q', 'k', 'v', 'o', 'lse'] as const)('%s one element short', (name) => {
    const whole = {q, k, v, o: new Float32Array(expected.o.length), lse: new Float32Array(rows)};
    expect(call({[name]: whole[name].subarray(1)})).toBe('SAGE_INVALID_ARGUMENT');
  });

  test('a mask one element short', () => {
    expect(call({mask: new Uint8Array(288)}, masked('boolean'))).toBe('SAGE_INVALID_ARGUMENT');
    expect(call({mask: new Float32Array(288)}, masked('additive'))).toBe('SAGE_INVALID_ARGUMENT');
  });

  test('arrays of another type, and what is no array', () => {
    for (const wrong of [new Float64Array(1e4), new Int32Array(1e4), [], {}, null, undefined, 1]) {
      expect(call({q: wrong})).toBe('SAGE_INVALID_ARGUMENT');
      expect(call({o: wrong})).toBe('SAGE_INVALID_ARGUMENT');
      expect(call({mask: wrong}, masked('boolean'))).toBe('SAGE_INVALID_ARGUMENT');
    }
    expect(call({mask: new Uint8Array(289)}, masked('additive'))).toBe('SAGE_INVALID_ARGUMENT');
  });

  test('too few arguments', () => {
    const bare = addon as unknown as Record<string, (...args: unknown[]) => void>;
    for (const name of ['forward', 'forwardAsync', 'backward', 'quantize', 'configure']) {
      expect(codeOf(() => bare[name]!())).toBe('SAGE_INVALID_ARGUMENT');
      if (name === 'configure') continue;
      expect(codeOf(() => bare[name]!(words))).toBe('SAGE_INVALID_ARGUMENT');
    }
  });

  test('strides that reach behind the end, however far', () => {
    for (const token of [problem.q.token + 1, 2 ** 31, 2 ** 52]) {
      expect(call({}, encode({...problem, q: {...problem.q, token}}))).toBe('SAGE_INVALID_ARGUMENT');
    }
  });

  test('an output whose elements overlap', () => {
    for (const o of [
      {...problem.o, token: 0},
      {...problem.o, token: problem.vDim - 1},
      {...problem.o, head: problem.vDim},
      {...problem.o, batch: 0},
    ]) {
      expect(call({}, encode({...problem, o}))).toBe('SAGE_INVALID_ARGUMENT');
    }
  });

  test.each(Array.from({length: PROBLEM_WORDS}, (_, i) => i))('word %i out of range', (at) => {
    for (const bad of [NaN, Infinity, -Infinity, -2, 1e300]) {
      const changed = words.slice();
      changed[at] = bad;
      // The scale may be negative, as a matter of range.
      if (at === 20 && bad === -2) continue;
      expect(call({}, changed)).toBe('SAGE_INVALID_ARGUMENT');
    }
  });

  test('fractions, another version, formats of another precision', () => {
    const changes: [number, number][] = [
      [0, 1],
      [0, 3],
      [4, 16.5],
      [6, 0],
      [6, 513],
      [10, 0.5],
      [21, 3],
      [29, 2],
      [30, 1],
      [32, 2],
      [35, 64],
      [41, 1],
      [45, 1],
    ];
    for (const [at, value] of changes) {
      const changed = words.slice();
      changed[at] = value;
      expect([at, call({}, changed)]).toEqual([at, 'SAGE_INVALID_ARGUMENT']);
    }
    expect(call({}, encode({...problem, qHeads: 3, kvHeads: 2}))).toBe('SAGE_INVALID_ARGUMENT');
    expect(call({}, encode({...problem, causal: 'top_left', windowRight: 2}))).toBe(
      'SAGE_INVALID_ARGUMENT',
    );
  });
});

describe('instruction sets and threads', () => {
  const {available} = addon.capabilities().isa;

  test('the best available is detected, and portable is always there', () => {
    const {detected, chosen} = addon.capabilities().isa;
    expect(available[0]).toBe('portable');
    expect(available[available.length - 1]).toBe(detected);
    expect(available).toContain(chosen);
  });

  test.each(available)('%s computes', (isa) => {
    addon.configure({isa, threads: 2});
    expect(addon.capabilities()).toMatchObject({
      isa: {chosen: isa, kernels: isa},
      threads: {chosen: 2},
    });
    const o = new Float32Array(expected.o.length);
    addon.forward(words, q, k, v, null, o, new Float32Array(rows));
    expect(largestError(o, expected.o)).toBeLessThan(1e-5);
    addon.configure({});
    expect(addon.capabilities().isa.chosen).toBe(addon.capabilities().isa.detected);
  });

  test('what this machine cannot run, or nobody knows, is refused and changes nothing', () => {
    const {refused} = addon.capabilities().isa;
    expect([...available, ...Object.keys(refused)].sort()).toEqual([...ISAS].sort());
    addon.configure({isa: 'portable', threads: 1});
    const configure = addon.configure as (choice: unknown) => void;
    for (const isa of (['avx2', 'avx512', 'avx512_bf16', 'amx'] as const).filter(
      (name) => !available.includes(name),
    )) {
      expect(codeOf(() => configure({isa, threads: 2}))).toBe('SAGE_UNSUPPORTED_ISA');
    }
    expect(codeOf(() => configure({isa: 'sse9', threads: 2}))).toBe('SAGE_UNKNOWN_ISA');
    for (const threads of [0, -1, 1.5, NaN, Infinity, 1e9, '2', true]) {
      expect(codeOf(() => configure({threads}))).toBe('SAGE_INVALID_ARGUMENT');
    }
    expect(addon.capabilities()).toMatchObject({isa: {chosen: 'portable'}, threads: {chosen: 1}});
    addon.configure({});
  });

  test('every thread count gives the same bits', () => {
    const long = caseNamed('N 17');
    const runs = [1, 2, 3, 8].map((threads) => {
      addon.configure({threads});
      const o = new Float32Array(expected.o.length);
      addon.forward(encode(problemOf(long, exact)), q, k, v, null, o, new Float32Array(rows));
      return o;
    });
    for (const o of runs) expect(o).toEqual(runs[0]);
  });
});

describe('other exports', () => {
  test('backward writes all gradients', () => {
    const gradients = [q, k, v].map((x) => new Float32Array(x.length).fill(NaN));
    const o = Float32Array.from(expected.o);
    const lse = Float32Array.from(expected.lse);
    const dO = new Float32Array(o.length).fill(1);
    const [dQ, dK, dV] = gradients as [Float32Array, Float32Array, Float32Array];
    addon.backward(words, q, k, v, null, o, lse, dO, null, dQ, dK, dV, null);
    for (const gradient of gradients) expect(gradient.every(Number.isFinite)).toBe(true);
    // o is a mean of rows of v, so the weights that its gradient gives to them sum to the number of rows of o.
    const sum = dV.reduce((total, x) => total + x, 0);
    expect(sum).toBeCloseTo(o.length, 2);
    expect(
      codeOf(() =>
        addon.backward(words, q, k, v, null, o, lse, dO, null, dQ.subarray(1), dK, dV, null),
      ),
    ).toBe('SAGE_INVALID_ARGUMENT');
  });

  test('quantize records integer codes', () => {
    const recipe = resolveRecipe('int8_bf16', {});
    if (isRefusal(recipe)) throw new Error('refused');
    const int8 = encode({...problem, recipe});
    const o = new Float32Array(expected.o.length);
    const qScale = new Float32Array(rows);
    const dims = addon.quantize(
      int8, q, k, v, null, o, new Float32Array(rows), null, qScale, null, null, null, null,
    );
    const qCodes = new Float32Array(rows * dims);
    addon.quantize(
      int8, q, k, v, null, o, new Float32Array(rows), qCodes, null, null, null, null, null,
    );
    expect(qCodes.every((code) => Number.isInteger(code) && Math.abs(code) <= 127)).toBe(true);
    expect(qCodes.some((code) => Math.abs(code) === 127)).toBe(true);
    expect(qScale.every((scale) => scale > 0)).toBe(true);
    const short = qCodes.subarray(1);
    expect(
      codeOf(() =>
        addon.quantize(
          int8, q, k, v, null, o, new Float32Array(rows), short, null, null, null, null, null,
        ),
      ),
    ).toBe('SAGE_INVALID_ARGUMENT');
  });
});
