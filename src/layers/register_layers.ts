/** The layers of this package in the registry that tfjs makes layers of a file from. */
import {serialization} from '@tensorflow/tfjs-core';
import {AdditiveAttention} from './additive_attention.js';
import {Attention} from './attention.js';
import {GroupQueryAttention} from './group_query_attention.js';
import {KerasOperation} from './keras_operation.js';
import {MultiHeadAttention} from './multi_head_attention.js';

const CLASSES = [
  MultiHeadAttention,
  GroupQueryAttention,
  Attention,
  AdditiveAttention,
  KerasOperation,
] as const;

/**
 * Makes `tf.loadLayersModel` know the attention layers, under Keras' class names, and the operations of Keras 3, for
 * models that tfjs has saved.
 * `loadLayersModel` of this package needs no such call.
 */
export function registerAttentionLayers(): void {
  for (const cls of CLASSES) {
    serialization.registerClass(
      cls as unknown as serialization.SerializableConstructor<serialization.Serializable>,
    );
  }
}

/** Runs `make` with the attention layers registered; afterwards the registry is as before. */
export function withAttentionLayers<T>(make: () => T): T {
  const {classNameMap} = serialization.SerializationMap.getMap();
  const names = CLASSES.map(({className}) => className);
  const before = names.map((name) => [name, classNameMap[name]] as const);
  registerAttentionLayers();
  try {
    return make();
  } finally {
    for (const [name, entry] of before) {
      if (entry === undefined) Reflect.deleteProperty(classNameMap, name);
      else classNameMap[name] = entry;
    }
  }
}
