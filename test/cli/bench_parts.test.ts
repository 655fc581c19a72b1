/** Parts of the benchmark: cases, turns, layouts, and the ONNX files that are written by hand. */
import {
  BENCH_CASES,
  nameOfCase,
  operationsOf,
  parseCases,
  type BenchCase,
} from '../../src/cli/bench/bench_cases.js';
import {headsToTokens, makeBenchInputs, tokensToHeads} from '../../src/cli/bench/bench_inputs.js';
import {median, timeInTurns, type Contender} from '../../src/cli/bench/bench_timing.js';
import {markdownTable} from '../../src/cli/bench/gpu.js';
import {gpuCases, nameOfGpuCase, topsOf} from '../../src/cli/bench/gpu_cases.js';
import {run} from './run.js';
import {encodeOnnxModel} from '../../src/cli/bench/onnx_model.js';
import {cudaEngine} from '../../src/engines/cuda.js';
import {ortContenders, ortForms, type Ort} from '../../src/cli/bench/onnxruntime.js';

const SMALL: BenchCase = {heads: 3, kvHeads: 3, headDim: 4, tokens: 5, causal: true};

describe('cases', () => {
  it('are three shapes, five lengths, full and causal', () => {
    expect(BENCH_CASES.map(nameOfCase)).toHaveLength(30);
    expect(nameOfCase(BENCH_CASES[0] as BenchCase)).toBe('h12_d64_n128_full');
    expect(nameOfCase(BENCH_CASES.at(-1) as BenchCase)).toBe('h12_kv2_d128_n4096_causal');
    expect(operationsOf({heads: 2, kvHeads: 1, headDim: 64, tokens: 100, causal: true})).toBe(
      4 * 2 * 1e4 * 64,
    );
  });

  it('are picked by name, by part of a name, once each', () => {
    expect(parseCases('h12_d64_n1024_full')).toEqual([BENCH_CASES[4]]);
    expect(parseCases('d128_n2048').map(nameOfCase)).toEqual([
      'h16_d128_n2048_full',
      'h16_d128_n2048_causal',
      'h12_kv2_d128_n2048_full',
      'h12_kv2_d128_n2048_causal',
    ]);
    expect(parseCases('h3_d4_n5_causal, h12_d64_n1024_full,h3_d4_n5_causal')).toEqual([
      SMALL,
      BENCH_CASES[4],
    ]);
  });
});

describe('turns', () => {
  const contender = (engine: string, group: string, log: string[]): Contender => ({
    engine,
    precision: 'x',
    group,
    run: () => void log.push(engine),
    output: () => Promise.resolve(new Float32Array(0)),
    dispose: () => undefined,
  });

  it('reverse the order every other round, after a warm-up each', async () => {
    const log: string[] = [];
    const contenders = ['a', 'b', 'c'].map((name) => contender(name, 'one', log));
    const clock = jest.spyOn(performance, 'now');
    let now = 0;
    // Every look at the clock is 10 ms after the last: one run fills a sample.
    clock.mockImplementation(() => (now += 10));
    try {
      const timings = await timeInTurns(contenders, {rounds: 3, sampleMs: 10, idleMs: 0});
      expect(timings).toEqual(Array(3).fill({ms: 10, minMs: 10}));
    } finally {
      clock.mockRestore();
    }
    const pairs = (names: string) => [...names].flatMap((name) => [name, name]).join('');
    expect(log.join('')).toBe(pairs('abc') + pairs('abc') + pairs('cba') + pairs('abc'));
  });

  it('repeat short runs until a sample is long enough, and pause between groups only', async () => {
    const log: string[] = [];
    const start = performance.now();
    const pause = 40;
    const [timing] = await timeInTurns(
      [contender('a', 'one', log), contender('b', 'one', log), contender('c', 'two', log)],
      {rounds: 2, sampleMs: 0.5, idleMs: pause},
    );
    // Before the first, at a-b|c, and at c|b-a is none: c has just run.
    expect(performance.now() - start).toBeGreaterThan(3 * pause * 0.9);
    expect(log.length).toBeGreaterThan(30);
    expect(timing?.ms).toBeLessThan(0.5);
    expect(timing?.minMs).toBeLessThanOrEqual(timing?.ms as number);
  });

  it('take the median', () => {
    expect([median([3, 1, 2]), median([4, 1, 2, 3]), median([7])]).toEqual([2, 2.5, 7]);
  });
});

describe('inputs', () => {
  it('change their layout and back', () => {
    const {q} = makeBenchInputs(SMALL);
    const swapped = headsToTokens(q, SMALL);
    // Head 2, token 1, channel 3.
    expect(swapped[(1 * 3 + 2) * 4 + 3]).toBe(q[(2 * 5 + 1) * 4 + 3]);
    expect(tokensToHeads(swapped, SMALL)).toEqual(q);
  });
});

/** Fields of a protobuf message by number; bytes where they have a length, else numbers. */
function decode(bytes: Uint8Array): Map<number, (number | Uint8Array)[]> {
  const fields = new Map<number, (number | Uint8Array)[]>();
  let at = 0;
  const varint = (): number => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++] as number;
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const number = key >> 3;
    let value: number | Uint8Array;
    if ((key & 7) === 2) {
      const length = varint();
      value = bytes.subarray(at, at + length);
      at += length;
    } else if ((key & 7) === 5) {
      value = new DataView(bytes.buffer, bytes.byteOffset + at, 4).getFloat32(0, true);
      at += 4;
    } else {
      value = varint();
    }
    fields.set(number, [...(fields.get(number) ?? []), value]);
  }
  return fields;
}

const messages = (fields: Map<number, (number | Uint8Array)[]>, number: number) =>
  (fields.get(number) ?? []) as Uint8Array[];
const texts = (fields: Map<number, (number | Uint8Array)[]>, number: number): string[] =>
  messages(fields, number).map((bytes) => new TextDecoder().decode(bytes));

describe('ONNX files', () => {
  it('hold the node, its inputs and outputs with shapes, and the operator sets', () => {
    const model = decode(
      encodeOnnxModel(
        {
          operator: 'Attention',
          domain: '',
          inputs: ['query', '', 'value'],
          outputs: ['output'],
          attributes: {is_causal: {int: 1}, scale: {float: 0.25}},
        },
        [{name: 'query', type: 'float32', dims: [1, 300, 4]}],
        [{name: 'length', type: 'int32', dims: [1]}],
      ),
    );
    expect(model.get(1)).toEqual([10]);
    const sets = messages(model, 8).map(decode);
    expect(sets.map((set) => [texts(set, 1)[0], set.get(2)?.[0]])).toEqual([
      ['', 23],
      ['com.microsoft', 1],
    ]);
    const graph = decode(messages(model, 7)[0] as Uint8Array);
    const node = decode(messages(graph, 1)[0] as Uint8Array);
    expect([texts(node, 1), texts(node, 2), texts(node, 4), texts(node, 7)]).toEqual([
      ['query', '', 'value'],
      ['output'],
      ['Attention'],
      [''],
    ]);
    const [causal, scale] = messages(node, 5).map(decode);
    expect([texts(causal!, 1), causal!.get(3), causal!.get(20)]).toEqual([['is_causal'], [1], [2]]);
    expect([texts(scale!, 1), scale!.get(2), scale!.get(20)]).toEqual([['scale'], [0.25], [1]]);
    const [input, output] = [11, 12].map((n) => decode(messages(graph, n)[0] as Uint8Array));
    expect([texts(input!, 1), texts(output!, 1)]).toEqual([['query'], ['length']]);
    const tensor = (value: Map<number, (number | Uint8Array)[]>) =>
      decode(messages(decode(messages(value, 2)[0]!), 1)[0]!);
    const dims = (value: Map<number, (number | Uint8Array)[]>) =>
      messages(decode(messages(tensor(value), 2)[0]!), 1).map((dim) => decode(dim).get(1)?.[0]);
    expect([tensor(input!).get(1), dims(input!)]).toEqual([[1], [1, 300, 4]]);
    expect([tensor(output!).get(1), dims(output!)]).toEqual([[6], [1]]);
  });

  it('ask each operator for the case', () => {
    const causal = ortForms(SMALL);
    expect(causal.map(({name}) => name)).toEqual([
      'onnxruntime-mha',
      'onnxruntime-attention',
      'onnxruntime-gqa',
    ]);
    expect(causal.map(({output}) => output.dims)).toEqual([
      [1, 5, 12],
      [1, 3, 5, 4],
      [1, 5, 12],
    ]);
    expect(causal[2]?.node.inputs).toHaveLength(7);
    const full = ortForms({...SMALL, causal: false});
    expect(full.map(({node}) => node.attributes)).toEqual([
      {num_heads: {int: 3}, unidirectional: {int: 0}},
      {is_causal: {int: 0}},
    ]);
  });

  it('are run with the threads asked for, fed in the layout of the operator', async () => {
    const {q, k, v} = makeBenchInputs(SMALL);
    const created: object[] = [];
    let released = 0;
    // Answers with the query, so that layouts show.
    const ort = {
      Tensor: class {
        constructor(
          readonly type: string,
          readonly data: Float32Array | Int32Array,
          readonly dims: readonly number[],
        ) {}
      },
      InferenceSession: {
        create: (_model: Uint8Array, options: object) => {
          created.push(options);
          return Promise.resolve({
            run: (feeds: Record<string, unknown>) => Promise.resolve({output: feeds['query']}),
            release: () => {
              released += 1;
              return Promise.resolve();
            },
          });
        },
      },
    } as unknown as Ort;
    const contenders = await ortContenders(ort, SMALL, {q, k, v}, 2);
    for (const contender of contenders) {
      expect(contender.engine).toMatch(/^peer:onnxruntime-/);
      expect(await contender.output()).toEqual(q);
      await contender.dispose();
    }
    expect(created).toEqual(
      Array(3).fill(expect.objectContaining({intraOpNumThreads: 2, interOpNumThreads: 1})),
    );
    expect(released).toBe(3);
  });
});

describe('the benchmark of the GPU', () => {
  it('has four sequences up to 8K, one above, and counts half under causality', () => {
    const cases = gpuCases([1024, 8192, 16384]);
    expect(cases).toHaveLength(2 * 2 * 3);
    expect(cases.map(nameOfGpuCase).slice(0, 4)).toEqual([
      'b4_h32_d128_n1024_full',
      'b4_h32_d128_n8192_full',
      'b1_h32_d128_n16384_full',
      'b4_h32_d128_n1024_causal',
    ]);
    // 4 · 4 · 32 · 8192² · 128 operations in 4 ms
    expect(topsOf(cases[1]!, 4)).toBeCloseTo(1099.5, 1);
    expect(topsOf(cases[4]!, 4)).toBeCloseTo(549.8, 1);
  });

  it('writes a Markdown table', () => {
    const text = markdownTable(
      [
        {
          case: 'b4_h32_d128_n1024_full',
          engine: 'cuda',
          precision: 'exact',
          deviceMs: 0.5,
          hostMs: 20,
          deviceTops: 137.4,
          hostTops: 3.4,
        },
        {
          case: 'b4_h32_d128_n1024_full',
          engine: 'peer:torch',
          precision: 'bfloat16, cuDNN',
          deviceMs: 0.25,
          hostMs: null,
          deviceTops: 274.9,
          hostTops: null,
        },
      ],
      'CUDA device 0',
    );
    expect(text).toContain('| b4_h32_d128_n1024_full | exact | 0.500 | 137 | 20.0 | 3.4 |');
    expect(text).toContain(
      '| b4_h32_d128_n1024_full | torch bfloat16, cuDNN | 0.250 | 275 |  |  |',
    );
    expect(text).toContain('CUDA device 0.');
  });

  (cudaEngine().engine === null ? it : it.skip)('says why there is none here', async () => {
    const {code, stderr} = await run('bench', '--gpu');
    expect(code).toBe(1);
    expect(stderr).toContain(`No GPU to time: ${cudaEngine().reason}.`);
  });
});
