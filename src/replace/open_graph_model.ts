/** tfjs' GraphModel as replacement needs it: some of its parts are private to its types. */
import type * as tf from '@tensorflow/tfjs-core';

/** The parts of tfjs' GraphModel that are private to its types. */
export interface OpenModel {
  artifacts: tf.io.ModelArtifacts;
  executor: OpenExecutor;
  loadWithWeightMap(artifacts: tf.io.ModelArtifacts, weights: tf.NamedTensorMap): boolean;
}

export interface OpenExecutor {
  readonly weightMap: Readonly<Record<string, tf.Tensor[]>>;
  readonly graph: OpenGraph;
}

export interface OpenGraph {
  readonly nodes: Readonly<Record<string, OpenNode>>;
  readonly functions?: Readonly<Record<string, OpenGraph>> | undefined;
}

export interface OpenNode {
  readonly name: string;
  readonly op: string;
  readonly category?: string;
  rawAttrs?: Record<string, unknown>;
}

export function openNodes(graph: OpenGraph): OpenNode[] {
  const bodies = Object.values(graph.functions ?? {}).flatMap(openNodes);
  return [...Object.values(graph.nodes), ...bodies];
}
