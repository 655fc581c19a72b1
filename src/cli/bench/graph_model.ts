/** Transformer blocks as tfjs graph models with random weights: what `bench --models` runs as they are and replaced. */
import type {io} from '@tensorflow/tfjs-core';

export interface GraphCase {
  readonly name: string;
  readonly tokens: number;
  readonly heads: number;
  readonly headDim: number;
  readonly layers: number;
  /** A constant triangle on the scores. */
  readonly causal: boolean;
  /** `matmul` as TensorFlow 2 and Keras 3 write it, `einsum` as Keras 2 does. */
  readonly form: 'matmul' | 'einsum';
}

export const GRAPH_CASES: readonly GraphCase[] = [
  {
    name: 'encoder_n512',
    tokens: 512,
    heads: 4,
    headDim: 64,
    layers: 1,
    causal: false,
    form: 'matmul',
  },
  {
    name: 'decoder_n1024',
    tokens: 1024,
    heads: 4,
    headDim: 64,
    layers: 1,
    causal: true,
    form: 'matmul',
  },
  {
    name: 'image_n1025_d32',
    tokens: 1025,
    heads: 4,
    headDim: 32,
    layers: 1,
    causal: false,
    form: 'matmul',
  },
  {
    name: 'keras_n512',
    tokens: 512,
    heads: 4,
    headDim: 64,
    layers: 1,
    causal: false,
    form: 'einsum',
  },
];

interface Node {
  readonly name: string;
  readonly op: string;
  readonly input: readonly string[];
  readonly attr: Readonly<Record<string, object>>;
}

const FLOAT = {type: 'DT_FLOAT'};

/** Mulberry32, so that every run has the same weights. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

class Writer {
  readonly nodes: Node[] = [];
  readonly specs: io.WeightsManifestEntry[] = [];
  readonly weights: Float32Array[] = [];
  private readonly next = random(5);

  node(
    name: string,
    op: string,
    input: readonly string[],
    attr: Record<string, object> = {},
  ): string {
    this.nodes.push({name, op, input, attr: {T: FLOAT, ...attr}});
    return name;
  }

  constant(name: string, values: Float32Array, shape: number[]): string {
    this.specs.push({name, shape, dtype: 'float32'});
    this.weights.push(values);
    return this.node(name, 'Const', [], {dtype: FLOAT});
  }

  integers(name: string, values: readonly number[]): string {
    this.specs.push({name, shape: [values.length], dtype: 'int32'});
    this.weights.push(new Float32Array(Int32Array.from(values).buffer));
    return this.node(name, 'Const', [], {dtype: {type: 'DT_INT32'}});
  }

  weight(name: string, rows: number, columns: number): string {
    const scale = Math.sqrt(3 / rows) * 2;
    const values = Float32Array.from({length: rows * columns}, () => (this.next() - 0.5) * scale);
    return this.constant(name, values, [rows, columns]);
  }

  product(name: string, a: string, b: string, turned = false): string {
    return this.node(name, 'BatchMatMulV2', [a, b], {adj_x: {b: false}, adj_y: {b: turned}});
  }
}

/**
 * @param withAttention Without it the values take the place of the attention's output: what the rest of the model costs.
 * @returns A model of input `x` [1, tokens, heads·headDim] and output `y` of the same shape.
 */
export function writeGraphModel(c: GraphCase, withAttention = true): io.IOHandler {
  const {tokens, heads, headDim, layers} = c;
  const width = heads * headDim;
  const writer = new Writer();
  const dim = [-1, tokens, width].map((size) => ({size: String(size)}));
  let x = writer.node('x', 'Placeholder', [], {dtype: FLOAT, shape: {shape: {dim}}});
  const splitShape = writer.integers('split', [-1, tokens, heads, headDim]);
  const mergedShape = writer.integers('merged', [-1, tokens, width]);
  const order = writer.integers('order', [0, 2, 1, 3]);
  const swap = {Tperm: {type: 'DT_INT32'}};
  const scale = writer.constant('scale', Float32Array.of(1 / Math.sqrt(headDim)), []);
  const triangle = c.causal
    ? writer.constant('triangle', penaltyOf(tokens), [1, 1, tokens, tokens])
    : null;
  for (let layer = 0; layer < layers; layer += 1) {
    const at = (name: string) => `layer${layer}/${name}`;
    const [q, k, v] = ['q', 'k', 'v'].map((name) => {
      const projected = writer.product(
        at(`${name}/project`),
        x,
        writer.weight(at(`${name}/kernel`), width, width),
      );
      const split = writer.node(at(`${name}/split`), 'Reshape', [projected, splitShape]);
      return c.form === 'einsum'
        ? split
        : writer.node(at(`${name}/turn`), 'Transpose', [split, order], swap);
    }) as [string, string, string];
    let o = v;
    if (withAttention) {
      const equation = (text: string) => ({equation: {s: btoa(text)}, N: {i: '2'}});
      let s =
        c.form === 'einsum'
          ? writer.node(at('scores'), 'Einsum', [k, q], equation('aecd,abcd->acbe'))
          : writer.product(at('scores'), q, k, true);
      s = writer.node(at('scaled'), 'Mul', [s, scale]);
      if (triangle !== null) s = writer.node(at('masked'), 'AddV2', [s, triangle]);
      const p = writer.node(at('softmax'), 'Softmax', [s]);
      o =
        c.form === 'einsum'
          ? writer.node(at('values'), 'Einsum', [p, v], equation('acbe,aecd->abcd'))
          : writer.product(at('values'), p, v);
    }
    if (c.form !== 'einsum') o = writer.node(at('back'), 'Transpose', [o, order], swap);
    const merged = writer.node(at('merge'), 'Reshape', [o, mergedShape]);
    const out = writer.product(at('project'), merged, writer.weight(at('kernel'), width, width));
    x = writer.node(at('residual'), 'AddV2', [x, out]);
  }
  writer.node('y', 'Identity', [x]);
  return {load: () => Promise.resolve(artifactsOf(writer))};
}

function penaltyOf(tokens: number): Float32Array {
  return Float32Array.from({length: tokens * tokens}, (_, n) =>
    n % tokens > Math.floor(n / tokens) ? -1e9 : 0,
  );
}

function artifactsOf({nodes, specs, weights}: Writer): io.ModelArtifacts {
  const total = weights.reduce((sum, {length}) => sum + length, 0);
  const all = new Float32Array(total);
  let at = 0;
  for (const values of weights) {
    // As bytes: integers need not survive as floats.
    new Uint8Array(all.buffer, at * 4, values.length * 4).set(
      new Uint8Array(values.buffer, values.byteOffset, values.length * 4),
    );
    at += values.length;
  }
  return {
    modelTopology: structuredClone({node: nodes, versions: {producer: 1, minConsumer: 1}}),
    weightSpecs: structuredClone(specs),
    weightData: all.buffer,
    signature: {inputs: {x: {name: 'x:0'}}, outputs: {y: {name: 'y:0'}}},
  };
}
