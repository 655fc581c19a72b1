/**
 * Scores whose heads are folded into the batch and unfolded only for the mask: [batch·heads, queries, keys], reshaped to
 * [batch, heads, queries, keys] and back, as in BART and Whisper.
 */
import type {GraphView} from '../model_graph.js';

/**
 * @param reshapes Shapes on the way from the product of probabilities and values back to that of queries and keys.
 * @returns The reference to [batch, heads, queries, keys]; null when the two do not undo each other.
 */
export function foldedHeads(graph: GraphView, reshapes: readonly string[]): string | null {
  const [fold, unfold] = reshapes;
  if (fold === undefined || unfold === undefined || reshapes.length !== 2) return null;
  const folded = entries(graph, fold);
  const unfolded = entries(graph, unfold);
  if (folded?.length !== 3 || unfolded?.length !== 4) return null;
  // Batch and token axes must be told: -1 is only understood in front.
  const same = (a: Entry | undefined, b: Entry | undefined) =>
    a !== undefined && b !== undefined && a !== -1 && equal(graph, a, b);
  return same(folded[1], unfolded[2]) && same(folded[2], unfolded[3]) ? unfold : null;
}

/** A known number, or a reference to a computed one. */
type Entry = number | string;

function entries(graph: GraphView, shape: string): Entry[] | null {
  const constant = graph.list(shape);
  if (constant !== null) return constant;
  const pack = graph.producer(shape);
  if (pack?.op !== 'Pack') return null;
  return graph.inputs(pack).map((input) => graph.scalar(input) ?? input);
}

function equal(graph: GraphView, a: Entry, b: Entry): boolean {
  return typeof a === 'string' && typeof b === 'string' ? graph.same(a, b) : a === b;
}
