/** The shapes of `bench`: two common heads-and-widths and one with grouped heads, five lengths, full and causal. */
import {InvalidArgumentError} from 'commander';
import {splitList} from '../arguments.js';

/** Batch 1, as many keys as queries. */
export interface BenchCase {
  readonly heads: number;
  /** Key/value heads; divides `heads`. */
  readonly kvHeads: number;
  readonly headDim: number;
  readonly tokens: number;
  readonly causal: boolean;
}

const SHAPES = [
  {heads: 12, kvHeads: 12, headDim: 64},
  {heads: 16, kvHeads: 16, headDim: 128},
  // Of small language models of today: six query heads share a key/value head.
  {heads: 12, kvHeads: 2, headDim: 128},
];
const LENGTHS = [128, 512, 1024, 2048, 4096];

export const BENCH_CASES: readonly BenchCase[] = SHAPES.flatMap((shape) =>
  LENGTHS.flatMap((tokens) => [false, true].map((causal) => ({...shape, tokens, causal}))),
);

/** Such as `h12_d64_n1024_full`, or `h12_kv2_d128_n1024_full` with grouped heads. */
export function nameOfCase({heads, kvHeads, headDim, tokens, causal}: BenchCase): string {
  const grouped = kvHeads === heads ? '' : `_kv${kvHeads}`;
  return `h${heads}${grouped}_d${headDim}_n${tokens}_${causal ? 'causal' : 'full'}`;
}

/** Largest heads · head_dim · tokens that a case may ask for: 4 GiB an operand. */
const MAX_ELEMENTS = 2 ** 30;

/**
 * Reads `--case`: names, or parts of the names of the default cases, with commas between them.
 * A whole name need not be one of the default cases.
 */
export function parseCases(text: string): BenchCase[] {
  const found = splitList(text).flatMap((part): BenchCase[] => {
    const match = /^h(\d+)(?:_kv(\d+))?_d(\d+)_n(\d+)_(full|causal)$/.exec(part);
    if (match === null) {
      const cases = BENCH_CASES.filter((c) => nameOfCase(c).includes(part));
      if (cases.length > 0) return cases;
      const example = 'h12_d64_n1024_full';
      throw new InvalidArgumentError(
        `No case has '${part}' in its name; names look like ${example}.`,
      );
    }
    const [heads, headDim, tokens] = [match[1], match[3], match[4]].map(Number) as [
      number,
      number,
      number,
    ];
    const kvHeads = Number(match[2] ?? heads);
    const elements = heads * headDim * tokens;
    if (elements === 0 || headDim > 512 || elements > MAX_ELEMENTS) {
      throw new InvalidArgumentError(`'${part}': expected sizes above 0 and a head_dim up to 512.`);
    }
    if (kvHeads === 0 || heads % kvHeads !== 0) {
      throw new InvalidArgumentError(`'${part}': expected kv heads that divide the query heads.`);
    }
    return [{heads, kvHeads, headDim, tokens, causal: match[5] === 'causal'}];
  });
  return [...new Map(found.map((c) => [nameOfCase(c), c])).values()];
}

/** Floating-point operations of full attention; causal attention is counted the same, whatever is skipped. */
export function operationsOf({heads, headDim, tokens}: BenchCase): number {
  return 4 * heads * tokens * tokens * headDim;
}
