/**
 * The attention layers of tfjs' unexported nlp folder, as tfjs-layers ships them: its ES modules, compiled to what this
 * process can load. They are a copy of tfjs-layers of their own, on the same tfjs-core.
 */
import {readFileSync} from 'node:fs';
import {dirname, join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import {transpileModule, ModuleKind, ScriptTarget} from 'typescript';

const ROOT = join(__dirname, '..', '..', 'node_modules', '@tensorflow', 'tfjs-layers', 'dist');
const modules = new Map<string, {exports: Record<string, unknown>}>();

function load(path: string): Record<string, unknown> {
  const known = modules.get(path);
  if (known !== undefined) return known.exports;
  const module = {exports: {}};
  modules.set(path, module);
  const {outputText} = transpileModule(readFileSync(`${path}.js`, 'utf8'), {
    compilerOptions: {
      module: ModuleKind.CommonJS,
      target: ScriptTarget.ES2022,
      esModuleInterop: true,
    },
  });
  const load2 = (name: string): unknown =>
    name.startsWith('.') ? load(join(dirname(path), name)) : tf;
  const run = new Function('require', 'module', 'exports', outputText) as (
    ...given: unknown[]
  ) => void;
  run(load2, module, module.exports);
  return module.exports;
}

export interface NlpLayer {
  name: string;
  readonly keyDim: number;
  readonly numHeads: number;
  weights: unknown[];
  queryDense: NlpDense;
  keyDense: NlpDense;
  valueDense: NlpDense;
  outputDense: NlpDense;
  call(query: tf.Tensor, kwargs: Record<string, unknown>): tf.Tensor;
  callAndReturnAttentionScores(
    query: tf.Tensor,
    kwargs: Record<string, unknown>,
  ): [tf.Tensor, tf.Tensor];
  callAndReturnCache(
    query: tf.Tensor,
    kwargs: Record<string, unknown>,
  ): [tf.Tensor, tf.Tensor | null];
  computeAttention(...args: unknown[]): [tf.Tensor, tf.Tensor];
}

interface NlpDense {
  apply(x: tf.Tensor): tf.Tensor;
}

type NlpClass = new (args: Record<string, unknown>) => NlpLayer;

export function nlpClasses(): {MultiHeadAttention: NlpClass; CachedMultiHeadAttention: NlpClass} {
  // The union package has registered the same classes of layers, which would be worth a warning each.
  const {MultiHeadAttention} = load(join(ROOT, 'layers/nlp/multihead_attention'));
  const {CachedMultiHeadAttention} = load(
    join(ROOT, 'layers/nlp/modeling/cached_multihead_attention'),
  );
  return {MultiHeadAttention, CachedMultiHeadAttention} as {
    MultiHeadAttention: NlpClass;
    CachedMultiHeadAttention: NlpClass;
  };
}

/** A model as far as patching goes: something with layers. */
export function modelOf(...layers: unknown[]): tf.io.ModelArtifacts & {layers: unknown[]} {
  return {layers};
}
