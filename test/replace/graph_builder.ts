/** Small GraphDefs written by hand, for what no converter writes on demand. */
import * as tf from '@tensorflow/tfjs-core';
import type {GraphAttribute, GraphNode} from '../../src/replace/model_graph.js';

type Values = readonly number[] | Float32Array;

export class GraphBuilder {
  private readonly nodes: GraphNode[] = [];
  private readonly specs: tf.io.WeightsManifestEntry[] = [];
  private readonly weights: Uint8Array[] = [];
  private readonly inputs: Record<string, {name: string}> = {};

  /** -1 is an unknown size. */
  placeholder(name: string, shape: readonly number[], dtype = 'DT_FLOAT'): string {
    this.inputs[name] = {name: `${name}:0`};
    const dim = shape.map((size) => ({size: String(size)}));
    return this.node(name, 'Placeholder', [], {dtype: {type: dtype}, shape: {shape: {dim}}});
  }

  constant(
    name: string,
    values: Values,
    shape: readonly number[] = [],
    dtype: 'float32' | 'int32' | 'bool' = 'float32',
  ): string {
    const types = {float32: Float32Array, int32: Int32Array, bool: Uint8Array};
    const bytes = types[dtype].from(values);
    this.weights.push(new Uint8Array(bytes.buffer));
    this.specs.push({name, shape: [...shape], dtype});
    const type = {float32: 'DT_FLOAT', int32: 'DT_INT32', bool: 'DT_BOOL'}[dtype];
    return this.node(name, 'Const', [], {dtype: {type}});
  }

  node(
    name: string,
    op: string,
    input: readonly string[],
    attr: Record<string, GraphAttribute> = {},
  ): string {
    this.nodes.push({name, op, input: [...input], attr: {T: {type: 'DT_FLOAT'}, ...attr}});
    return name;
  }

  /** a·b, or a·bᵀ. */
  product(name: string, a: string, b: string, turned = false): string {
    return this.node(name, 'BatchMatMulV2', [a, b], {adj_x: {b: false}, adj_y: {b: turned}});
  }

  artifacts(outputs: readonly string[]): tf.io.ModelArtifacts {
    return {
      modelTopology: structuredClone({node: this.nodes, versions: {producer: 1, minConsumer: 1}}),
      weightSpecs: structuredClone(this.specs),
      weightData: new Uint8Array(Buffer.concat(this.weights)).buffer,
      signature: {
        inputs: structuredClone(this.inputs),
        outputs: Object.fromEntries(outputs.map((name) => [name, {name: `${name}:0`}])),
      },
    };
  }

  handler(outputs: readonly string[]): tf.io.IOHandler {
    return {load: () => Promise.resolve(this.artifacts(outputs))};
  }
}

export interface AttentionGraphOptions {
  readonly scale?: number;
  /** Shape of an additive mask that is an input. */
  readonly mask?: readonly number[];
  /** Shape of a boolean one, with the value that hidden scores get. */
  readonly seen?: readonly number[];
  readonly hidden?: number;
}

/** softmax(q·kᵀ · scale + mask)·v on inputs q, k, v (and mask, seen) of unknown sizes; its output is `o`. */
export function attentionGraph({
  scale = 0.5,
  mask,
  seen,
  hidden = -1e9,
}: AttentionGraphOptions = {}): GraphBuilder {
  const graph = new GraphBuilder();
  const any = [-1, -1, -1, -1];
  for (const name of ['q', 'k', 'v']) graph.placeholder(name, any);
  graph.constant('scale', [scale]);
  graph.product('qk', 'q', 'k', true);
  let scores = graph.node('scaled', 'Mul', ['qk', 'scale']);
  if (mask !== undefined) {
    graph.placeholder('mask', mask);
    scores = graph.node('masked', 'AddV2', [scores, 'mask']);
  }
  if (seen !== undefined) {
    graph.placeholder('seen', seen, 'DT_BOOL');
    graph.constant('hidden', [hidden]);
    scores = graph.node('selected', 'SelectV2', ['seen', scores, 'hidden']);
  }
  graph.node('p', 'Softmax', [scores]);
  graph.product('o', 'p', 'v');
  return graph;
}

/** N(0,1), the same at every run. */
export function normal(shape: readonly number[], seed: number): tf.Tensor {
  return tf.randomNormal([...shape], 0, 1, 'float32', seed);
}
