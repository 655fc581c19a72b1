/** Tables as the commands print them: no frame but a rule under the head, numbers to the right. */
import Table from 'cli-table3';
import picocolors from 'picocolors';

/** Each border character of cli-table3 that is left out. */
const NO_FRAME = Object.fromEntries(
  [
    'top',
    'top-mid',
    'top-left',
    'top-right',
    'bottom',
    'bottom-mid',
    'bottom-left',
    'bottom-right',
    'left',
    'left-mid',
    'mid',
    'mid-mid',
    'right',
    'right-mid',
  ].map((name) => [name, '']),
);

export interface TableColumn {
  readonly title: string;
  /** Default: left. */
  readonly align?: 'left' | 'right';
}

/**
 * @param columns Titles may hold line ends.
 * @param colours Whether the head is bold.
 */
export function formatTable(
  columns: readonly TableColumn[],
  rows: readonly (readonly string[])[],
  colours: boolean,
): string {
  const {bold} = picocolors.createColors(colours && picocolors.isColorSupported);
  const table = new Table({
    head: columns.map(({title}) => title.split('\n').map(bold).join('\n')),
    colAligns: columns.map(({align}) => align ?? 'left'),
    chars: {...NO_FRAME, middle: '  '},
    // The library's own colours would come on pipes too.
    style: {head: [], border: [], 'padding-left': 0, 'padding-right': 0},
  });
  table.push(...rows.map((row) => [...row]));
  // Trailing blanks only make copied tables longer.
  return table
    .toString()
    .split('\n')
    .map((line) => line.trimEnd())
    .join('\n');
}

/** A number with three significant digits; small ones with two and an exponent. */
export function formatNumber(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1);
  return value.toPrecision(3);
}

/** Milliseconds: one decimal below 100. */
export function formatMs(ms: number): string {
  return ms < 1 ? ms.toFixed(3) : ms < 100 ? ms.toFixed(1) : ms.toFixed(0);
}
