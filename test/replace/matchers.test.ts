/** What the matchers take and what they leave, on graphs that no converter writes on demand. */
import * as converter from '@tensorflow/tfjs-converter';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {compareArrays} from '../../src/accuracy/metrics.js';
import {accelerateGraphModel, getReplacementReport} from '../../src/converter.js';
import type {GraphTopology} from '../../src/replace/model_graph.js';
import {rewriteGraph} from '../../src/replace/rewrite_graph.js';
import {GraphBuilder, normal} from './graph_builder.js';

const N = 7;
const ANY = [-1, -1, -1, -1];
const BOOL = {DstT: {type: 'DT_BOOL'}};

beforeAll(async () => {
  await tf.setBackend('cpu');
});

class Attention extends GraphBuilder {
  readonly given: Record<string, tf.Tensor> = {};

  constructor(m = N) {
    super();
    this.input('q', normal([2, 2, N, 4], 1));
    this.input('k', normal([2, 2, m, 4], 2));
    this.input('v', normal([2, 2, m, 4], 3));
  }

  input(name: string, value: tf.Tensor, dtype = 'DT_FLOAT'): string {
    this.given[name] = value;
    return this.placeholder(name, value.rank === 4 ? ANY : value.shape, dtype);
  }

  scores(): string {
    return this.product('qk', 'q', 'k', true);
  }

  /** softmax(scores)·v */
  attend(scores: string): this {
    this.product('o', this.node('p', 'Softmax', [scores]), 'v');
    return this;
  }

  /** Positions of rows and columns. */
  rows(n = N): string {
    return this.constant(
      'rows',
      Array.from({length: n}, (_, i) => i),
      [n, 1],
      'int32',
    );
  }

  columns(m = N): string {
    return this.constant(
      'columns',
      Array.from({length: m}, (_, j) => j),
      [1, m],
      'int32',
    );
  }

  masked(condition: string, scores = this.scores(), value = -1e9): this {
    return this.attend(
      this.node('masked', 'SelectV2', [condition, scores, this.constant('low', [value])]),
    );
  }
}

interface Outcome {
  readonly pattern: string;
  readonly reason: string | null;
  readonly replaced: boolean;
}

/** Replaces, and checks that every output is what it was. */
async function outcome(graph: Attention, outputs = ['o']): Promise<Outcome> {
  const plain = await converter.loadGraphModel(graph.handler(outputs));
  const model = await converter.loadGraphModel(graph.handler(outputs));
  await accelerateGraphModel(model, {precision: 'exact'});
  const [before, after] = [plain, model].map((m) => [m.execute(graph.given, outputs)].flat());
  for (const [i, tensor] of (before ?? []).entries()) {
    const other = after?.[i] as tf.Tensor;
    expect(other.shape).toEqual(tensor.shape);
    expect(compareArrays(other.dataSync(), tensor.dataSync()).relativeL1).toBeLessThan(1e-5);
  }
  const [row] = getReplacementReport(model)?.rows ?? [];
  return row as Outcome;
}

async function pattern(graph: Attention, outputs?: string[]): Promise<string> {
  const row = await outcome(graph, outputs);
  expect(row).toMatchObject({replaced: true});
  return row.pattern;
}

async function reason(graph: Attention, outputs?: string[]): Promise<string> {
  const row = await outcome(graph, outputs);
  expect(row).toMatchObject({replaced: false});
  return row.reason ?? '';
}

describe('triangles', () => {
  it.each([
    ['GreaterEqual', true],
    ['LessEqual', false],
  ] as const)('%s of positions', async (op, rowsFirst) => {
    const graph = new Attention();
    const sides = [graph.rows(), graph.columns()];
    const condition = graph.node('seen', op, rowsFirst ? sides : sides.reverse());
    expect(await pattern(graph.masked(condition))).toContain(', causal');
  });

  it.each([
    ['Greater', false],
    ['Less', true],
  ] as const)('%s of positions, true on hidden keys', async (op, rowsFirst) => {
    const graph = new Attention();
    const sides = [graph.rows(), graph.columns()];
    const hidden = graph.node('hidden', op, rowsFirst ? sides : sides.reverse());
    const low = graph.constant('low', [-1e9]);
    graph.attend(graph.node('masked', 'SelectV2', [hidden, low, graph.scores()]));
    expect(await pattern(graph)).toContain(', causal');
  });

  it.each([
    ['Greater', true],
    ['Less', false],
  ] as const)('%s of positions, one key short, is a mask like any other', async (op, rowsFirst) => {
    const graph = new Attention();
    const sides = [graph.rows(), graph.columns()];
    const condition = graph.node('seen', op, rowsFirst ? sides : sides.reverse());
    expect(await pattern(graph.masked(condition))).toContain(', where mask');
  });

  it.each([-1, 1, 2])('a constant %d columns beside the diagonal is a mask', async (shift) => {
    const graph = new Attention();
    const values = Array.from({length: N * N}, (_, n) =>
      n % N <= Math.floor(n / N) + shift ? 1 : 0,
    );
    graph.masked(graph.constant('seen', values, [1, 1, N, N], 'bool'));
    expect(await pattern(graph)).toContain(', where mask');
  });

  it('a constant of more keys than queries ends at the last key', async () => {
    const m = N + 4;
    const graph = new Attention(m);
    const values = Array.from({length: N * m}, (_, n) =>
      n % m <= Math.floor(n / m) + 4 ? 0 : -1e9,
    );
    graph.attend(
      graph.node('added', 'AddV2', [graph.scores(), graph.constant('t', values, [N, m])]),
    );
    expect(await pattern(graph)).toContain(', causal');
  });

  it('upper ones are masks', async () => {
    const graph = new Attention();
    const condition = graph.node('seen', 'LessEqual', [graph.rows(), graph.columns()]);
    expect(await pattern(graph.masked(condition))).toContain(', where mask');
  });

  it('the parts of an and, and of an or of what is hidden', async () => {
    const both = new Attention();
    const keys = both.input(
      'keys',
      tf.tensor([1, 1, 0, 1, 1, 0, 1], [1, 1, 1, N], 'bool'),
      'DT_BOOL',
    );
    const seen = both.node('seen', 'GreaterEqual', [both.rows(), both.columns()]);
    both.masked(both.node('and', 'LogicalAnd', [seen, keys], {}));
    expect(await pattern(both)).toContain(', where mask, causal');

    const either = new Attention();
    const padded = either.input(
      'padded',
      tf.tensor([0, 0, 1, 0, 0, 1, 0], [1, 1, 1, N], 'bool'),
      'DT_BOOL',
    );
    const ahead = either.node('ahead', 'Less', [either.rows(), either.columns()]);
    const hidden = either.node('or', 'LogicalOr', [padded, ahead]);
    const low = either.constant('low', [-1e9]);
    either.attend(either.node('masked', 'SelectV2', [hidden, low, either.scores()]));
    expect(await pattern(either)).toContain('causal');
  });

  it('an or of what is seen is one mask', async () => {
    const graph = new Attention();
    const keys = graph.input(
      'keys',
      tf.tensor([1, 0, 0, 0, 0, 0, 1], [1, 1, 1, N], 'bool'),
      'DT_BOOL',
    );
    const seen = graph.node('seen', 'GreaterEqual', [graph.rows(), graph.columns()]);
    graph.masked(graph.node('or', 'LogicalOr', [seen, keys]));
    expect(await pattern(graph)).toContain('(q·k, where mask)');
  });
});

describe('scores', () => {
  it('are told from biases that are products too', async () => {
    const graph = new Attention();
    const position = graph.input('position', normal([2, 2, N, 4], 8));
    const bias = graph.product('bias', 'q', position, true);
    graph.attend(graph.node('sum', 'AddV2', [graph.scores(), bias]));
    expect(await pattern(graph)).toContain('q·k + mask');
  });

  it('as keys times queries, transposed', async () => {
    const graph = new Attention(N + 2);
    const turned = graph.product('kq', 'k', 'q', true);
    const order = graph.constant('order', [0, 1, 3, 2], [4], 'int32');
    const scores = graph.node('turn', 'Transpose', [turned, order]);
    const mask = graph.input('mask', normal([1, 1, N, N + 2], 6));
    graph.attend(graph.node('added', 'AddV2', [scores, mask]));
    expect(await pattern(graph)).toContain('q·k + mask');
  });

  it('with the axis of the queries before that of the heads', async () => {
    const graph = new Attention();
    const letters = (equation: string) => ({equation: {s: btoa(equation)}, N: {i: '2'}});
    const scores = graph.node('qk', 'Einsum', ['q', 'k'], letters('bntd,bnsd->btns'));
    const mask = graph.input('mask', normal([1, N, 2, N], 6));
    const p = graph.node('p', 'Softmax', [graph.node('added', 'AddV2', [scores, mask])]);
    graph.node('o', 'Einsum', [p, 'v'], letters('btns,bnsd->bdtn'));
    expect(await pattern(graph)).toContain('q·k + mask');
  });

  it('masked before they are transposed are left', async () => {
    const graph = new Attention();
    const mask = graph.input('mask', normal([1, 1, N, N], 6));
    const masked = graph.node('added', 'AddV2', [graph.product('kq', 'k', 'q', true), mask]);
    const order = graph.constant('order', [0, 1, 3, 2], [4], 'int32');
    graph.attend(graph.node('turn', 'Transpose', [masked, order]));
    expect(await reason(graph)).toContain('masked before');
  });

  it('with a constant on all of them, and a bound far below', async () => {
    const graph = new Attention();
    const raised = graph.node('raised', 'AddV2', [graph.scores(), graph.constant('three', [3])]);
    const bound = graph.constant('bound', [-3.4e38]);
    graph.attend(graph.node('bounded', 'Maximum', [raised, bound]));
    expect(await pattern(graph)).toBe('softmax(q·k)·v (MatMul)');
  });

  it('bounded from below by a value that matters are left', async () => {
    const graph = new Attention();
    graph.attend(graph.node('relu', 'Maximum', [graph.scores(), graph.constant('zero', [0])]));
    expect(await reason(graph)).toContain('bounded from below');
  });

  it.each([0, -0.5])('scaled by %d', async (scale) => {
    const graph = new Attention();
    graph.attend(graph.node('scaled', 'Mul', [graph.scores(), graph.constant('scale', [scale])]));
    expect(await pattern(graph)).toContain('scale');
  });

  it('multiplied by what may be any number are left', async () => {
    const graph = new Attention();
    const b = graph.input('b', tf.abs(normal([1, 1, N, N], 7)));
    const one = graph.node('rest', 'Sub', [graph.constant('one', [1]), b]);
    const penalty = graph.node('penalty', 'Mul', [graph.constant('c', [1e4]), one]);
    const product = graph.node('times', 'Mul', [graph.scores(), b]);
    graph.attend(graph.node('masked', 'Sub', [product, penalty]));
    expect(await reason(graph)).toContain('multiplied by data');
  });

  it('multiplied by a condition are masked', async () => {
    const graph = new Attention();
    const given = tf.tensor([1, 1, 0, 1, 1, 0, 1], [1, 1, 1, N]);
    const bits = graph.node('bits', 'Cast', [graph.input('bits_in', given)], {
      SrcT: {type: 'DT_FLOAT'},
      ...BOOL,
    });
    const b = graph.node('b', 'Cast', [bits], {SrcT: {type: 'DT_BOOL'}, DstT: {type: 'DT_FLOAT'}});
    const one = graph.node('rest', 'Sub', [graph.constant('one', [1]), b]);
    const penalty = graph.node('penalty', 'Mul', [graph.constant('c', [1e4]), one]);
    const product = graph.node('times', 'Mul', [graph.scores(), b]);
    graph.attend(graph.node('masked', 'Sub', [product, penalty]));
    expect(await pattern(graph)).toContain(', where mask');
  });

  it('whose shape is asked for leave that shape behind', async () => {
    const graph = new Attention();
    const scaled = graph.node('scaled', 'Mul', [graph.scores(), graph.constant('scale', [0.5])]);
    const shape = graph.node('shape', 'Shape', [scaled], {out_type: {type: 'DT_INT32'}});
    const bias = graph.node('bias', 'Fill', [shape, graph.constant('two', [2])]);
    graph.attend(graph.node('added', 'AddV2', [scaled, bias]));
    expect(await pattern(graph, ['o', 'shape'])).toContain('scale + mask');
  });

  it('whose masked shape is asked for are left', async () => {
    const graph = new Attention();
    const mask = graph.input('mask', normal([2, 1, 1, N], 6));
    const masked = graph.node('added', 'AddV2', [graph.scores(), mask]);
    graph.node('shape', 'Shape', [masked], {out_type: {type: 'DT_INT32'}});
    expect(await reason(graph.attend(masked), ['o', 'shape'])).toContain('the shape of');
  });
});

describe('probabilities', () => {
  const zeroed = (name: string) => {
    const graph = new Attention();
    const seen = graph.input('seen', tf.greater(normal([2, 1, N, N], 9), 0), 'DT_BOOL');
    const other = graph.input('other', tf.greater(normal([2, 1, N, N], 10), 0), 'DT_BOOL');
    const low = graph.constant('low', [-1e9]);
    const p = graph.node('p', 'Softmax', [
      graph.node('masked', 'SelectV2', [seen, graph.scores(), low]),
    ]);
    const zero = graph.constant('zero', [0]);
    graph.product(
      'o',
      graph.node('kept', 'SelectV2', [name === 'seen' ? seen : other, p, zero]),
      'v',
    );
    return graph;
  };

  it('made 0 by the mask itself are 0 in rows that see nothing', async () => {
    expect(await pattern(zeroed('seen'))).toContain(', where mask');
  });

  it('made 0 by another condition are left', async () => {
    expect(await reason(zeroed('other'))).toContain('masked, in a way');
  });

  const byHand = (shape: number[], m = N) => {
    const graph = new Attention(m);
    const e = graph.node('e', 'Exp', [graph.scores()]);
    const axis = graph.constant('axis', [-1], [], 'int32');
    const sum = graph.node('sum', 'Sum', [e, axis], {keep_dims: {b: false}});
    const spread = graph.node('spread', 'Reshape', [
      sum,
      graph.constant('shape', shape, [4], 'int32'),
    ]);
    graph.product('o', graph.node('p', 'RealDiv', [e, spread]), 'v');
    return graph;
  };

  it('by exponentials without their maximum', async () => {
    expect(await pattern(byHand([2, 2, N, 1]))).toContain('softmax by exponentials');
  });

  it('divided by sums along other axes are left', async () => {
    expect(await reason(byHand([2, 2, 1, N]))).toContain('other axes');
  });

  it('on the right of the product, transposed', async () => {
    const graph = new Attention(N + 1);
    const p = graph.node('p', 'Softmax', [graph.scores()]);
    graph.node('o', 'BatchMatMulV2', ['v', p], {adj_x: {b: true}, adj_y: {b: true}});
    expect(await pattern(graph)).toContain('softmax(q·k)·v');
  });

  it('summed over queries are left', async () => {
    const graph = new Attention();
    const p = graph.node('p', 'Softmax', [graph.scores()]);
    graph.node('o', 'BatchMatMulV2', [p, 'v'], {adj_x: {b: true}, adj_y: {b: false}});
    expect(await reason(graph)).toContain('sums over queries');
  });

  it('that something else reads are left', async () => {
    const graph = new Attention();
    graph.attend(graph.scores());
    graph.node('strongest', 'Max', ['p', graph.constant('axis', [-1], [], 'int32')]);
    expect(await reason(graph, ['o', 'strongest'])).toContain(
      "more than one node ('o', 'strongest')",
    );
  });

  it('times themselves are left', async () => {
    const graph = new Attention();
    const p = graph.node('p', 'Softmax', [graph.scores()]);
    graph.product('o', p, p);
    expect((await outcome(graph)).replaced).toBe(false);
  });
});

it('a node that cannot be read keeps its attention as it is, and nothing else', () => {
  const graph = new Attention();
  graph.attend(graph.node('qk', 'Einsum', ['q', 'k'], {equation: {s: '%%%'}, N: {i: '2'}}));
  graph.product('qk2', 'o', 'k', true);
  graph.node('p2', 'Softmax', ['qk2']);
  graph.product('o2', 'p2', 'v');
  const {modelTopology} = graph.artifacts(['o2']);
  const {rows} = rewriteGraph(modelTopology as GraphTopology, ['o2'], () => null, {
    exclude: new Set(),
    only: null,
    protect: new Set(),
    recipeOf: () => ({}),
  });
  expect(rows.map(({node, replaced}) => [node, replaced])).toEqual([
    ['o2', true],
    ['p', false],
  ]);
  expect(rows[1]?.reason).toContain('cannot be read');
});
