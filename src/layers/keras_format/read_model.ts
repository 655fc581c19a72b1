/**
 * The topology of a layers model, Keras 2, Keras 3 or tfjs, as the configuration that tfjs builds a model from. Beside
 * it the layers as the file lists them, since Keras 3 names weights by their order.
 */
import {serialization} from '@tensorflow/tfjs-core';
import type {KerasMajor} from '../follow_masks.js';
import {KerasOperation} from '../keras_operation.js';
import {isObject, objectAt, textAt, type JsonObject} from './json_values.js';
import {
  callStyle,
  readCalls,
  refsOf,
  sameForAll,
  type LayerCall,
  type TensorRef,
} from './layer_calls.js';
import {readSettings} from './layer_settings.js';
import type {ModelFile} from './model_errors.js';
import {isOperation, readOperation, type ReadOperation} from './operation_nodes.js';

/** A layer as the file has it: enough to find its weights. */
export interface ListedLayer {
  readonly name: string;
  readonly className: string;
  /** Layers of a nested model, else null. */
  readonly layers: readonly ListedLayer[] | null;
}

export interface ReadModel {
  /** Whose rules hold in this model. */
  readonly keras: KerasMajor;
  /** Weights are named by order (Keras 3), not by layer. */
  readonly weightsByOrder: boolean;
  /** `{className, config}` for the constructor of tfjs. */
  readonly tfjs: TfjsLayer;
  /** Layers whose calls name their mask: names by the name of their model. */
  readonly masked: ReadonlyMap<string, ReadonlySet<string>>;
  readonly listed: ListedLayer;
}

export interface TfjsLayer {
  readonly className: string;
  readonly config: serialization.ConfigDict;
}

const MODEL_CLASSES: ReadonlySet<string> = new Set(['Functional', 'Model', 'Sequential']);

/** Operations that Keras' own layers make their masks of, by the last one; a mask of any other is made by hand. */
const MASK_MAKERS: ReadonlySet<string> = new Set([
  'NotEqual',
  'Any',
  'LogicalOr',
  'LogicalAnd',
  'Squeeze',
]);

/** Layers that hold one layer, and where. */
const WRAPPED: readonly string[] = ['layer', 'backward_layer', 'forward_layer', 'cell'];

/** @param topology `modelTopology` of a model.json. */
export function readModel(file: ModelFile, topology: unknown): ReadModel {
  if (!isObject(topology)) throw file.invalid(null, 'it has no modelTopology');
  const model = isObject(topology.model_config) ? topology.model_config : topology;
  const version = textAt(topology, 'keras_version') ?? textAt(model, 'keras_version') ?? '';
  const isTfjs = version.startsWith('tfjs');
  const keras3 = !isTfjs && (version.startsWith('3') || writtenByKeras3(model));
  const keras = keras3 || (isTfjs && !JSON.stringify(model).includes('"keras":2')) ? 3 : 2;
  const reader = new Reader(file, keras, isTfjs);
  const className = textAt(model, 'class_name');
  if (className === null || !MODEL_CLASSES.has(className)) {
    throw className === null
      ? file.invalid(null, 'its modelTopology has no class_name')
      : file.unknown(textAt(objectAt(model, 'config'), 'name') ?? 'model', className);
  }
  return {
    keras,
    weightsByOrder: keras3,
    tfjs: reader.model(className, model.config),
    masked: reader.masked,
    listed: listed(className, className, model),
  };
}

/** Keras 3 writes calls as objects and input shapes as `batch_shape`. */
function writtenByKeras3(model: JsonObject): boolean {
  const text = JSON.stringify(model);
  return text.includes('"keras_history"') || text.includes('"batch_shape"');
}

function listed(name: string, className: string, {config}: JsonObject): ListedLayer {
  const layers = isObject(config) ? config.layers : config;
  const isModel = MODEL_CLASSES.has(className) && Array.isArray(layers);
  return {
    name,
    className,
    layers: isModel
      ? (layers as unknown[]).filter(isObject).map((layer) => {
          const own = textAt(layer, 'class_name') ?? '';
          return listed(layerName(layer) ?? own, own, layer);
        })
      : null,
  };
}

function layerName(layer: JsonObject): string | null {
  return textAt(layer, 'name') ?? textAt(objectAt(layer, 'config'), 'name');
}

class Reader {
  /** Names of layers whose calls name their mask, by the name of their model. */
  readonly masked = new Map<string, ReadonlySet<string>>();

  constructor(
    private readonly file: ModelFile,
    private readonly keras: KerasMajor,
    private readonly isTfjs: boolean,
  ) {}

  model(className: string, config: unknown): TfjsLayer {
    return className === 'Sequential' ? this.sequential(config) : this.functional(config);
  }

  private sequential(config: unknown): TfjsLayer {
    const layers = isObject(config) ? config.layers : config;
    if (!Array.isArray(layers)) throw this.file.invalid(null, 'a Sequential model has no layers');
    const name = isObject(config) ? textAt(config, 'name') : null;
    return tfjsLayer('Sequential', {
      ...(name === null ? {} : {name}),
      layers: (layers as unknown[]).map((layer) => {
        const {className, config: own} = this.layer(layer, []);
        return {className, config: own};
      }),
    });
  }

  private functional(config: unknown): TfjsLayer {
    if (!isObject(config) || !Array.isArray(config.layers)) {
      throw this.file.invalid(null, 'a Functional model has no layers');
    }
    const {file} = this;
    const layers = (config.layers as unknown[]).map((layer) => {
      if (!isObject(layer)) throw file.invalid(null, 'a layer is no object');
      const name = layerName(layer);
      const className = textAt(layer, 'class_name');
      if (name === null || className === null) {
        throw file.invalid(name, 'a layer has no name or no class_name');
      }
      return {layer, name, className, nodes: layer.inbound_nodes};
    });
    const operations = new Map<string, ReadOperation>();
    const operates = (entry: JsonObject): boolean =>
      this.keras === 3 && !this.isTfjs && isOperation(entry);
    const isModel = new Map(
      layers.map(({name, className}) => [name, MODEL_CLASSES.has(className)]),
    );
    const outputs = refsOf(file, config.output_layers);
    const inputs = refsOf(file, config.input_layers);
    const byName = new Map(layers.map((entry) => [entry.name, entry]));
    const layerClassOf = (name: string): string | null => {
      const entry = byName.get(name);
      const className = entry?.className ?? '';
      if (entry !== undefined && operates(entry.layer)) {
        return MASK_MAKERS.has(className) ? null : className;
      }
      return MODEL_CLASSES.has(className) || isKnown(className) ? className : null;
    };
    const calls = new Map<string, LayerCall[]>();
    // Only what leads to the outputs: Keras 3 also lists the operations that make masks, which follow tensors here.
    const waiting = [...outputs, ...inputs];
    for (let ref = waiting.pop(); ref !== undefined; ref = waiting.pop()) {
      const [name] = ref;
      if (calls.has(name)) continue;
      const entry = byName.get(name);
      if (entry === undefined) throw file.invalid(name, 'it is named as an input but is not there');
      let own: LayerCall[];
      if (operates(entry.layer)) {
        const operation = readOperation(file, name, entry.layer);
        operations.set(name, operation);
        own = [{inputs: operation.inputs, attention: null}];
      } else {
        own = readCalls(file, name, entry.className, entry.nodes, layerClassOf);
      }
      calls.set(name, own);
      waiting.push(...own.flatMap((call) => call.inputs));
    }
    // tfjs counts a nested model itself as its first call; so does Keras 2.
    const shift = ([name, node, tensor]: TensorRef): [string, number, number] => [
      name,
      this.keras === 3 && !this.isTfjs && isModel.get(name) === true ? node + 1 : node,
      tensor,
    ];
    const used = layers.filter(({name}) => calls.has(name));
    const masked = used.filter(({name}) => calls.get(name)?.some(({isMasked}) => isMasked));
    if (masked.length > 0) {
      const modelName = textAt(config, 'name') ?? 'model';
      this.masked.set(modelName, new Set(masked.map(({name}) => name)));
    }
    return tfjsLayer('Functional', {
      name: textAt(config, 'name') ?? 'model',
      layers: used.map(({layer, name}) => {
        const own = calls.get(name) ?? [];
        const operation = operations.get(name);
        return {
          name,
          ...(operation === undefined
            ? this.layer(layer, own)
            : tfjsLayer(KerasOperation.className, {name, ...operation.config})),
          inboundNodes: own.map((call) => call.inputs.map((ref) => [...shift(ref), {}])),
        };
      }),
      inputLayers: inputs.map(shift),
      outputLayers: outputs.map(shift),
    });
  }

  private layer(layer: unknown, calls: readonly LayerCall[]): TfjsLayer {
    const {file} = this;
    const className = isObject(layer) ? textAt(layer, 'class_name') : null;
    if (!isObject(layer) || className === null)
      throw file.invalid(null, 'a layer has no class_name');
    const name = layerName(layer) ?? className;
    if (MODEL_CLASSES.has(className)) {
      const {config} = this.model(className, layer.config);
      return {className, config: {...config, name}};
    }
    if (!isKnown(className)) {
      throw file.unknown(name, className);
    }
    const settings = readSettings(file, name, className, objectAt(layer, 'config'));
    for (const place of WRAPPED) {
      const inner = settings[place];
      if (isObject(inner)) settings[place] = this.layer(inner, []);
    }
    const attention = sameForAll(file, name, calls);
    if (callStyle(className) !== 'plain') {
      const remembered = settings.call_arguments;
      if (remembered === undefined && attention !== null) settings.call_arguments = attention;
      if (this.keras === 2) settings.keras = 2;
    }
    return tfjsLayer(className, settings);
  }
}

function isKnown(className: string): boolean {
  return className in serialization.SerializationMap.getMap().classNameMap;
}

function tfjsLayer(className: string, config: object): TfjsLayer {
  return {className, config: spelled(config) as serialization.ConfigDict};
}

/** Names and references stay as they are; everything else is spelled as tfjs does. */
function spelled(value: unknown, key = ''): unknown {
  if (typeof value === 'string') return key === 'name' ? value : camelCase(value);
  if (Array.isArray(value)) {
    if (REFERENCES.has(key)) return value;
    return (value as unknown[]).map((item) => spelled(item));
  }
  if (!isObject(value)) return value;
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [camelCase(name), spelled(item, camelCase(name))]),
  );
}

const REFERENCES: ReadonlySet<string> = new Set(['inboundNodes', 'inputLayers', 'outputLayers']);

function camelCase(name: string): string {
  return name.replace(/_+(\w|$)/g, (_, letter: string) => letter.toUpperCase());
}
