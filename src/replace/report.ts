/**
 * What a replacement did to a model: one row for each place that looked like attention. Graph models and layers models
 * keep their reports here; this file knows neither kind.
 */

/** One place of a model that looked like attention. */
export interface ReplacementRow {
  /** Name of the graph node, or of the layer, that holds the attention's output. */
  readonly node: string;
  /** What was recognised, in a few words, such as `softmax(q·k · scale + mask)·v`. */
  readonly pattern: string;
  readonly replaced: boolean;
  /** Why it was left alone; for a replaced row what is worth knowing about it, or null. */
  readonly reason: string | null;
}

export interface ReplacementReport {
  readonly rows: readonly ReplacementRow[];
  /** Rows that were replaced. */
  readonly replaced: number;
  /** All rows. */
  readonly candidates: number;
}

const reports = new WeakMap<object, ReplacementReport>();

/** A report of these rows. */
export function makeReplacementReport(rows: readonly ReplacementRow[]): ReplacementReport {
  return {
    rows,
    replaced: rows.filter(({replaced}) => replaced).length,
    candidates: rows.length,
  };
}

/** Remembers the report of a model for as long as the model lives; a later one takes its place. */
export function setReplacementReport(model: object, report: ReplacementReport): void {
  reports.set(model, report);
}

/**
 * What the replacement found in a model, by graph node or layer.
 *
 * ```js
 * const model = await loadGraphModel('file://model/model.json', {sage: {}});
 * const {rows, replaced, candidates} = getReplacementReport(model);
 * ```
 *
 * @param model A graph or layers model.
 * @returns The report of the last replacement; null when none has been tried on this model.
 */
export function getReplacementReport(model: object): ReplacementReport | null {
  return reports.get(model) ?? null;
}
