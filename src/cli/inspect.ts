/** `inspect`: the attentions of a graph model, which of them can be replaced, and why the others cannot. */
import type {ReplacementReport} from '../replace/report.js';
import {loadConverterEntry, readGraphFiles} from './graph_files.js';
import {formatTable} from './table.js';
import type {Terminal} from './terminal.js';

export async function runInspect(
  _options: object,
  terminal: Terminal,
  path: string,
): Promise<ReplacementReport> {
  const {handler} = readGraphFiles(path);
  const {getReplacementReport, loadGraphModel} = await loadConverterEntry();
  const model = await loadGraphModel(handler, {sage: {}});
  const report = getReplacementReport(model) as ReplacementReport;
  model.dispose();
  printReport(report, terminal);
  return report;
}

/** One line a place, and how many there are. */
export function printReport(report: ReplacementReport, terminal: Terminal): void {
  const {rows, replaced, candidates} = report;
  if (rows.length > 0) {
    terminal.print(
      formatTable(
        [{title: 'node'}, {title: 'replaced'}, {title: 'pattern'}, {title: 'reason'}],
        rows.map((row) => [row.node, row.replaced ? 'yes' : 'no', row.pattern, row.reason ?? '']),
        terminal.colours,
      ),
    );
  }
  terminal.print(`${replaced} of ${candidates} softmaxes are attention that can be replaced.`);
}
