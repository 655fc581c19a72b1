/** `rewrite`: writes a graph model with its attentions replaced. tfjs loads it as any other once the entry is imported. */
import {existsSync, mkdirSync, writeFileSync} from 'node:fs';
import {dirname, join, resolve} from 'node:path';
import type {io} from '@tensorflow/tfjs-core';
import type {Precision} from '../numerics/recipes.js';
import type {ReplacementReport} from '../replace/report.js';
import {CliError} from './cli_error.js';
import {loadConverterEntry, readGraphFiles} from './graph_files.js';
import {printReport} from './inspect.js';
import type {Terminal} from './terminal.js';

export interface RewriteOptions {
  /** Recipe of every attention. Default: chosen where the model runs. */
  readonly precision?: Precision | undefined;
}

export interface RewriteBody extends ReplacementReport {
  /** The model.json that was written. */
  readonly written: string;
}

/**
 * @param path The model's model.json.
 * @param out A directory, or the model.json to write; weight files are copied beside it, bit by bit.
 */
export async function runRewrite(
  {precision}: RewriteOptions,
  terminal: Terminal,
  path: string,
  out: string,
): Promise<RewriteBody> {
  const target = out.endsWith('.json') ? out : join(out, 'model.json');
  if (resolve(target) === resolve(path)) {
    throw new CliError('The model would be written over itself.', 'Name another directory.');
  }
  const {json, shards, handler} = readGraphFiles(path);
  const {getReplacementReport, loadGraphModel} = await loadConverterEntry();
  const sage = precision === undefined ? {} : {precision};
  const model = await loadGraphModel(handler, {sage});
  const report = getReplacementReport(model) as ReplacementReport;
  const topologies: unknown[] = [];
  await model.save({
    save: ({modelTopology}: io.ModelArtifacts) => {
      topologies.push(modelTopology);
      return Promise.resolve({
        modelArtifactsInfo: {dateSaved: new Date(0), modelTopologyType: 'JSON' as const},
      });
    },
  });
  model.dispose();
  const [modelTopology] = topologies;
  mkdirSync(dirname(target), {recursive: true});
  for (const {name, bytes} of shards) {
    const file = join(dirname(target), name);
    if (resolve(file) === resolve(dirname(path), name) && existsSync(file)) continue;
    mkdirSync(dirname(file), {recursive: true});
    writeFileSync(file, bytes);
  }
  writeFileSync(target, JSON.stringify({...json, modelTopology}));
  printReport(report, terminal);
  terminal.print(
    `Wrote ${target}; import 'tfjs-sage-attention/converter' before tf.loadGraphModel.`,
  );
  return {...report, written: target};
}
