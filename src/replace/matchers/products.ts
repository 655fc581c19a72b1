/**
 * The two products of attention: queries with keys in front of the softmax, probabilities with values behind it.
 * Both come as MatMul, BatchMatMul or Einsum; Transpose nodes in front of an operand are folded into its letters.
 */
import {flag, text, type GraphNode, type GraphView} from '../model_graph.js';
import {batchLetters, MAX_BATCH_AXES, spellLetters} from '../attention_plan.js';

const MATRIX_PRODUCTS = new Set(['MatMul', 'BatchMatMul', 'BatchMatMulV2', 'BatchMatMulV3']);

export function isProduct(node: GraphNode): boolean {
  return MATRIX_PRODUCTS.has(node.op) || node.op === 'Einsum';
}

export interface Operand {
  readonly reference: string;
  /** One letter for each axis of `reference`; see attention_plan.ts. */
  readonly letters: string;
}

export interface ScoreProduct {
  readonly q: Operand;
  readonly k: Operand;
  /** Letters of the scores, `t` last. */
  readonly scores: string;
}

export interface ValueProduct {
  readonly v: Operand;
  readonly out: string;
}

/**
 * The operands of a product that makes scores, or why it makes none. Queries and keys are told by the softmax: it runs
 * over keys, so these are on the last axis of the scores.
 * @param permutation Of a Transpose between product and softmax; null for none.
 */
export function scoreProduct(
  graph: GraphView,
  node: GraphNode,
  permutation: readonly number[] | null = null,
): ScoreProduct | string {
  const [a, b] = graph.inputs(node);
  if (a === undefined || b === undefined)
    return 'the product in front of the softmax lacks an operand';
  const found =
    node.op === 'Einsum'
      ? einsumScores(node, a, b, permutation)
      : matrixScores(node, a, b, permutation);
  if (typeof found === 'string') return found;
  if (isWeight(graph, found.k.reference) || isWeight(graph, found.q.reference)) {
    return 'the scores are a product with weights of the model: a classifier or a router';
  }
  return {...found, q: untransposed(graph, found.q), k: untransposed(graph, found.k)};
}

function matrixScores(
  node: GraphNode,
  a: string,
  b: string,
  permutation: readonly number[] | null,
): ScoreProduct | string {
  const q = flag(node, 'adj_x', 'transpose_a') ? 'ds' : 'sd';
  const k = flag(node, 'adj_y', 'transpose_b') ? 'td' : 'dt';
  const dots = node.op === 'MatMul' ? '' : '...';
  const plain = {
    q: {reference: a, letters: dots + q},
    k: {reference: b, letters: dots + k},
    scores: `${dots}st`,
  };
  if (permutation === null) return plain;
  const scores = afterTranspose(plain.scores, permutation);
  if (scores?.endsWith('t')) return {...plain, scores};
  if (scores?.endsWith('s') !== true) return 'the softmax runs neither over queries nor over keys';
  // The first operand has the keys.
  return {
    q: {reference: b, letters: exchanged(plain.k.letters)},
    k: {reference: a, letters: exchanged(plain.q.letters)},
    scores: exchanged(scores),
  };
}

/** Queries for keys and keys for queries. */
function exchanged(letters: string): string {
  return letters.replace(/[st]/g, (letter) => (letter === 's' ? 't' : 's'));
}

function einsumScores(
  node: GraphNode,
  a: string,
  b: string,
  permutation: readonly number[] | null,
): ScoreProduct | string {
  const equation = parseEquation(node);
  const {left, right, result: written} = equation ?? {left: '', right: '', result: ''};
  const result = permutation === null ? written : afterTranspose(written, permutation);
  if (equation === null || result === null) {
    return 'the Einsum in front of the softmax is of a kind that is not understood';
  }
  const key = result[result.length - 1] ?? '';
  const [queries, keys] = right.includes(key) ? [left, right] : [right, left];
  const summed = [...queries].filter((letter) => keys.includes(letter) && !result.includes(letter));
  const onlyQueries = [...result].filter((l) => queries.includes(l) && !keys.includes(l));
  const onlyKeys = [...keys].filter((letter) => !queries.includes(letter));
  const query = onlyQueries[onlyQueries.length - 1];
  if (
    !keys.includes(key) ||
    summed.length !== 1 ||
    onlyKeys.length !== 1 ||
    query === undefined ||
    [...queries].some((letter) => !result.includes(letter) && letter !== summed[0])
  ) {
    return 'the Einsum in front of the softmax is no product of queries and keys';
  }
  const names = namesByPosition(result, query, key);
  if (names === null) return 'the scores have more axes than are understood';
  names.set(summed[0] as string, 'd');
  const [q, k] = queries === left ? [a, b] : [b, a];
  return {
    q: {reference: q, letters: rename(queries, names)},
    k: {reference: k, letters: rename(keys, names)},
    scores: rename(result, names),
  };
}

/**
 * The values and the axes of the output of a product that takes the probabilities `p`, or why it is none.
 * @param scores Letters of the scores, by whose order of axes the letters of this product are renamed.
 */
export function valueProduct(
  graph: GraphView,
  node: GraphNode,
  p: string,
  scores: string,
): ValueProduct | string {
  const [a, b] = graph.inputs(node);
  if (a === undefined || b === undefined) return 'the product behind the softmax lacks an operand';
  const isFirst = graph.same(a, p);
  if (graph.same(a, b))
    return 'the product behind the softmax is of the probabilities with themselves';
  const found =
    node.op === 'Einsum'
      ? einsumValues(node, a, b, isFirst, scores)
      : matrixValues(node, a, b, isFirst, scores);
  if (typeof found === 'string') return found;
  return {...found, v: untransposed(graph, found.v)};
}

function matrixValues(
  node: GraphNode,
  a: string,
  b: string,
  isFirst: boolean,
  scores: string,
): ValueProduct | string {
  if (!scores.endsWith('st')) return 'the order of axes of the scores is not understood';
  const left = flag(node, 'adj_x', 'transpose_a');
  const right = flag(node, 'adj_y', 'transpose_b');
  const batch = scores.slice(0, -2);
  if (isFirst) {
    if (left) return 'the product behind the softmax sums over queries';
    return {
      v: {reference: b, letters: operandBatch(node) + (right ? 'et' : 'te')},
      out: `${batch}se`,
    };
  }
  if (!right) return 'the product behind the softmax sums over queries';
  return {
    v: {reference: a, letters: operandBatch(node) + (left ? 'te' : 'et')},
    out: `${batch}es`,
  };
}

/** Matrix products broadcast, so an operand may have fewer axes than the scores. */
function operandBatch(node: GraphNode): string {
  return node.op === 'MatMul' ? '' : '...';
}

function einsumValues(
  node: GraphNode,
  a: string,
  b: string,
  isFirst: boolean,
  scores: string,
): ValueProduct | string {
  const equation = parseEquation(node);
  if (equation === null) return 'the Einsum behind the softmax is of a kind that is not understood';
  const {left, right, result} = equation;
  const [probabilities, values] = isFirst ? [left, right] : [right, left];
  const spelled = spellLetters(scores, probabilities.length);
  if (spelled.length !== probabilities.length) {
    return 'the Einsum behind the softmax takes another number of axes than the scores have';
  }
  const names = new Map([...probabilities].map((letter, i) => [letter, spelled[i] as string]));
  const own = [...values].filter((letter) => !names.has(letter));
  const key = probabilities[spelled.indexOf('t')] ?? '';
  const kept = [...probabilities].filter((letter) => letter !== key);
  if (
    own.length !== 1 ||
    !result.includes(own[0] as string) ||
    !values.includes(key) ||
    result.includes(key) ||
    values.includes(probabilities[spelled.indexOf('s')] ?? '') ||
    kept.some((letter) => !result.includes(letter))
  ) {
    return 'the Einsum behind the softmax is no product of probabilities and values';
  }
  names.set(own[0] as string, 'e');
  return {
    v: {reference: isFirst ? b : a, letters: rename(values, names)},
    out: rename(result, names),
  };
}

interface Equation {
  readonly left: string;
  readonly right: string;
  readonly result: string;
}

/** Two operands, no letter twice in one of them, no ellipsis. */
function parseEquation(node: GraphNode): Equation | null {
  const equation = text(node, 'equation')?.replace(/\s/g, '') ?? '';
  const match = /^([a-zA-Z]+),([a-zA-Z]+)->([a-zA-Z]+)$/.exec(equation);
  if (match === null) return null;
  const [, left = '', right = '', result = ''] = match;
  const isPlain = [left, right, result].every((part) => new Set(part).size === part.length);
  return isPlain ? {left, right, result} : null;
}

/** Our letters for those of an equation's scores. */
function namesByPosition(scores: string, query: string, key: string): Map<string, string> | null {
  const others = [...scores].filter((letter) => letter !== query && letter !== key);
  if (others.length > MAX_BATCH_AXES) return null;
  const letters = batchLetters(others.length);
  const names = new Map(others.map((letter, i) => [letter, letters[i] as string]));
  return names.set(query, 's').set(key, 't');
}

function rename(letters: string, names: ReadonlyMap<string, string>): string {
  return [...letters].map((letter) => names.get(letter) ?? '?').join('');
}

/** The operand in front of its Transpose nodes. */
function untransposed(graph: GraphView, operand: Operand): Operand {
  let {reference, letters} = operand;
  for (let i = 0; i < 4; i += 1) {
    const node = graph.producer(reference);
    if (node?.op !== 'Transpose') break;
    const [source, order] = graph.inputs(node);
    const permutation = graph.list(order);
    if (source === undefined || permutation === null) break;
    const before = beforeTranspose(letters, permutation);
    if (before === null) break;
    reference = source;
    letters = before;
  }
  return {reference, letters};
}

/** Letters of x where `letters` are those of transpose(x, permutation). */
function beforeTranspose(letters: string, permutation: readonly number[]): string | null {
  const spelled = spellLetters(letters, permutation.length);
  if (spelled.length !== permutation.length) return null;
  const source = Array<string>(spelled.length);
  for (const [i, axis] of permutation.entries()) source[axis] = spelled[i] as string;
  return source.join('');
}

/** Letters of transpose(x, permutation) where `letters` are those of x. */
export function afterTranspose(letters: string, permutation: readonly number[]): string | null {
  const spelled = spellLetters(letters, permutation.length);
  if (spelled.length !== permutation.length) return null;
  return permutation.map((axis) => spelled[axis]).join('');
}

/** Whether a tensor is a constant of the model, whatever its shape was made into. */
function isWeight(graph: GraphView, reference: string): boolean {
  let node = graph.producer(reference);
  for (let i = 0; node !== null && i < 8; i += 1) {
    if (node.op === 'Const') return true;
    if (!['Identity', 'Transpose', 'Reshape', 'Cast', 'ReadVariableOp'].includes(node.op))
      return false;
    node = graph.producer(graph.inputs(node)[0]);
  }
  return false;
}
