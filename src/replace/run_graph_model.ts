/** Runs a graph model whatever ops it has, as it is and as it was before its attentions were replaced. */
import * as converter from '@tensorflow/tfjs-converter';
import * as tf from '@tensorflow/tfjs-core';
import {openNodes, type OpenModel} from './open_graph_model.js';

/** What a graph model takes: tensors in order, or by name. */
export type GraphInputs = tf.Tensor | tf.Tensor[] | tf.NamedTensorMap;

/** Artifacts as they were before the first replacement. */
const originals = new WeakMap<object, tf.io.ModelArtifacts>();

/** The first artifacts of a model that are told; later ones are replaced already. */
export function rememberOriginal(model: object, artifacts: tf.io.ModelArtifacts): void {
  if (!originals.has(model)) originals.set(model, artifacts);
}

/** Ops that tfjs runs by `executeAsync` only. */
const ASYNCHRONOUS =
  /^(Switch|Merge|Enter|Exit|NextIteration|(Stateless)?(If|While)|Where|NonMaxSuppression.*|Unique.*|ListDiff|TensorArray.*|TensorList.*)$/;

function isSynchronous(model: converter.GraphModel): boolean {
  const {graph} = (model as unknown as OpenModel).executor;
  return !openNodes(graph).some(({op}) => ASYNCHRONOUS.test(op));
}

/** Outputs in the order of the model's output nodes. */
export async function execute(
  model: converter.GraphModel,
  inputs: GraphInputs,
): Promise<tf.Tensor[]> {
  const names = model.outputNodes;
  const given = inputs as tf.Tensor | tf.Tensor[] | tf.NamedTensorMap;
  const named =
    given instanceof tf.Tensor || Array.isArray(given) ? namedInputs(model, given) : given;
  const outputs = isSynchronous(model)
    ? model.execute(named, names)
    : await model.executeAsync(named, names);
  return Array.isArray(outputs) ? outputs : [outputs];
}

function namedInputs(
  model: converter.GraphModel,
  inputs: tf.Tensor | tf.Tensor[],
): tf.NamedTensorMap {
  const list = Array.isArray(inputs) ? inputs : [inputs];
  return Object.fromEntries(
    model.inputNodes.flatMap((name, i) => {
      const tensor = list[i];
      return tensor === undefined ? [] : [[name, tensor] as const];
    }),
  );
}

/** A model of the original graph on the same weights; made for one run, and never disposed, as the weights are not its own. */
export async function runOriginal(
  model: converter.GraphModel,
  inputs: GraphInputs,
): Promise<tf.Tensor[]> {
  const artifacts = originals.get(model);
  const weights = (model as unknown as OpenModel).executor.weightMap;
  const original = new converter.GraphModel({
    load: () => Promise.reject(new Error("The weights are another model's.")),
  });
  const flat = Object.fromEntries(
    Object.entries(weights).flatMap(([name, [tensor]]) =>
      tensor === undefined ? [] : [[name, tensor] as const],
    ),
  );
  (original as unknown as OpenModel).loadWithWeightMap(
    artifacts ?? (model as unknown as OpenModel).artifacts,
    flat,
  );
  return execute(original, inputs);
}
