/**
 * The tensors of one attention node brought into the op's order: q, k, v as [batch, heads, tokens, head_dim] or, where
 * all three come that way, [batch, tokens, heads, head_dim] without a copy; masks as [batch, heads, queries, keys].
 */
import * as tf from '@tensorflow/tfjs-core';
import {spellLetters, type AttentionPlan, type PlanStep} from './attention_plan.js';

export interface AlignedOperands {
  readonly q: tf.Tensor4D;
  readonly k: tf.Tensor4D;
  readonly v: tf.Tensor4D;
  readonly layout: 'HND' | 'NHD';
  /** Steps with their tensors of rank 4, each axis 1 or whole. */
  readonly steps: readonly AlignedStep[];
  /** Size of each letter. */
  readonly sizes: ReadonlyMap<string, number>;
  /** Letters that make the batch, and those that make the heads. */
  readonly batch: string;
  readonly heads: string;
}

export type AlignedStep =
  | {readonly op: 'add'; readonly tensor: tf.Tensor4D; readonly factor: number}
  | {
      readonly op: 'select';
      /** bool, true = seen. */
      readonly tensor: tf.Tensor4D;
      readonly value: number;
    }
  | Extract<PlanStep, {op: 'causal'}>;

interface Lettered {
  readonly tensor: tf.Tensor;
  readonly letters: string;
}

/** Call within a tidy. */
export function alignOperands(plan: AttentionPlan, inputs: readonly tf.Tensor[]): AlignedOperands {
  const shape = plan.unfold === null ? null : Array.from(tensorOf(inputs, plan.unfold).dataSync());
  const lettered = (letters: string, i: number): Lettered =>
    unfolded(tensorOf(inputs, i), letters, shape);
  let q = lettered(plan.q, 0);
  let k = lettered(plan.k, 1);
  let v = lettered(plan.v, 2);
  const scores = shape === null ? plan.scores : '...st';
  const masks = plan.steps.map((step): Lettered | null => {
    if (step.op === 'causal') return null;
    const tensor = tensorOf(inputs, step.input);
    const all = spellLetters(scores, Math.max(tensor.rank, scores.length));
    return {tensor, letters: tensor.rank === 0 ? '' : all.slice(-tensor.rank)};
  });
  const sizes = sizesOf([q, k, v, ...masks.filter((mask) => mask !== null)]);
  const order = [...sizes.keys()]
    .filter((letter) => !'stde'.includes(letter))
    .sort()
    .join('');
  const batch = order.length > 1 ? order.slice(0, 1) : '';
  const heads = order.slice(batch.length);
  q = broadcast(q, order, sizes);
  // One size for both: k and v share their heads.
  const shared = (letter: string) => Math.max(sizeIn(k, letter), sizeIn(v, letter));
  const kvSizes = new Map([...order].map((letter) => [letter, shared(letter)]));
  const isGrouped = groupsQueries(order, batch, sizes, kvSizes);
  k = broadcast(k, order, isGrouped ? kvSizes : sizes);
  v = broadcast(v, order, isGrouped ? kvSizes : sizes);
  const layout = [q, k, v].every(
    ({letters}) => letters === `${batch}${tokenOf(letters)}${heads}${dimOf(letters)}`,
  )
    ? 'NHD'
    : 'HND';
  const arrange = (operand: Lettered) => arranged(operand, batch, heads, layout);
  return {
    q: arrange(q),
    k: arrange(k),
    v: arrange(v),
    layout,
    steps: plan.steps.map((step, i) => alignStep(step, masks[i] ?? null, sizes, batch, heads)),
    sizes,
    batch,
    heads,
  };
}

/** o in the axes that the graph wants. */
export function orderOutput(
  o: tf.Tensor,
  plan: AttentionPlan,
  {layout, sizes, batch, heads}: AlignedOperands,
): tf.Tensor {
  const present = layout === 'NHD' ? `${batch}s${heads}e` : `${batch}${heads}se`;
  const dims = (letters: string) => [...letters].map((letter) => sizes.get(letter) ?? 1);
  const spread = tf.reshape(o, dims(present));
  const folded = plan.unfold === null ? plan.out : plan.out.replace('...', 'z');
  const rank = folded.startsWith('...') ? present.length : folded.length;
  const wanted = plan.unfold === null ? spellLetters(folded, rank) : folded.replace('z', 'yz');
  const order = [...wanted].map((letter) => present.indexOf(letter));
  const ordered = order.every((axis, i) => axis === i) ? spread : tf.transpose(spread, order);
  if (plan.unfold === null) return ordered;
  const merged = [...folded].map((letter) =>
    letter === 'z' ? (sizes.get('y') ?? 1) * (sizes.get('z') ?? 1) : (sizes.get(letter) ?? 1),
  );
  return tf.reshape(ordered, merged);
}

/** The shape that the scores have, without masks. */
export function scoreShape(plan: AttentionPlan, q: tf.Tensor, k: tf.Tensor): number[] {
  const left = {tensor: q, letters: spellLetters(plan.q, q.rank)};
  const right = {tensor: k, letters: spellLetters(plan.k, k.rank)};
  const sizes = sizesOf([left, right]);
  const rank = plan.scores.startsWith('...') ? Math.max(q.rank, k.rank) : plan.scores.length;
  return [...spellLetters(plan.scores, rank)].map((letter) => sizes.get(letter) ?? 1);
}

function tensorOf(inputs: readonly tf.Tensor[], i: number): tf.Tensor {
  const tensor = inputs[i];
  if (tensor === undefined) throw new Error(`an attention node lacks input ${i}`);
  return tensor;
}

/** Letters spelled out; the folded axis in two where heads are folded into the batch. */
function unfolded(tensor: tf.Tensor, letters: string, shape: readonly number[] | null): Lettered {
  const spelled = spellLetters(letters, tensor.rank);
  if (shape === null) return {tensor, letters: spelled};
  const axis = spelled.indexOf('z');
  if (axis < 0) return {tensor, letters: spelled};
  const folded = tensor.shape[axis] as number;
  const [b = -1, h = -1] = shape;
  const batch = b > 0 ? b : h > 0 ? folded / h : 1;
  const dims = [...tensor.shape];
  dims.splice(axis, 1, batch, folded / batch);
  return {tensor: tf.reshape(tensor, dims), letters: spelled.replace('z', 'yz')};
}

function sizesOf(operands: readonly Lettered[]): Map<string, number> {
  const sizes = new Map<string, number>();
  for (const {tensor, letters} of operands) {
    for (const [axis, letter] of [...letters].entries()) {
      const size = tensor.shape[axis] as number;
      const known = sizes.get(letter) ?? 1;
      if (size !== known && size !== 1 && known !== 1) {
        throw new Error(`axis '${letter}' has ${known} and ${size} elements`);
      }
      // 0 beside 1 is 0, as in every broadcast.
      sizes.set(letter, size === 1 ? known : size);
    }
  }
  return sizes;
}

function sizeIn({tensor, letters}: Lettered, letter: string): number {
  const axis = letters.indexOf(letter);
  return axis < 0 ? 1 : (tensor.shape[axis] as number);
}

/** Adds missing letters in front and widens axes of 1 to `sizes`. */
function broadcast(operand: Lettered, order: string, sizes: ReadonlyMap<string, number>): Lettered {
  const missing = [...order].filter((letter) => !operand.letters.includes(letter)).join('');
  let {tensor} = operand;
  const letters = missing + operand.letters;
  if (missing !== '') {
    tensor = tf.reshape(tensor, [...Array<number>(missing.length).fill(1), ...tensor.shape]);
  }
  const dims = [...letters].map((letter, axis) => {
    const own = tensor.shape[axis] as number;
    return own === 1 && order.includes(letter) ? (sizes.get(letter) ?? 1) : own;
  });
  if (dims.some((size, axis) => size !== tensor.shape[axis])) {
    tensor = tf.broadcastTo(tensor, dims);
  }
  return {tensor, letters};
}

/** Whether k and v have fewer heads in the op's way: whole axes first, then axes of 1, the batch whole. */
function groupsQueries(
  order: string,
  batch: string,
  sizes: ReadonlyMap<string, number>,
  kvSizes: ReadonlyMap<string, number>,
): boolean {
  let isWhole = true;
  for (const letter of order) {
    const size = sizes.get(letter) ?? 1;
    if (size === 1) continue;
    const own = kvSizes.get(letter) === size;
    if (own && !isWhole) return false;
    if (!own && batch.includes(letter)) return false;
    isWhole = own;
  }
  return true;
}

function tokenOf(letters: string): string {
  return letters.includes('s') ? 's' : 't';
}

function dimOf(letters: string): string {
  return letters.includes('d') ? 'd' : 'e';
}

function arranged(
  {tensor, letters}: Lettered,
  batch: string,
  heads: string,
  layout: 'HND' | 'NHD',
): tf.Tensor4D {
  const token = tokenOf(letters);
  const dim = dimOf(letters);
  const wanted = layout === 'NHD' ? [batch, token, heads, dim] : [batch, heads, token, dim];
  const order = [...wanted.join('')].map((letter) => letters.indexOf(letter));
  const ordered = order.every((axis, i) => axis === i) ? tensor : tf.transpose(tensor, order);
  const size = (part: string) =>
    [...part].reduce((n, letter) => n * (tensor.shape[letters.indexOf(letter)] as number), 1);
  return tf.reshape(ordered, wanted.map(size) as [number, number, number, number]);
}

function alignStep(
  step: PlanStep,
  mask: Lettered | null,
  sizes: ReadonlyMap<string, number>,
  batch: string,
  heads: string,
): AlignedStep {
  if (step.op === 'causal' || mask === null) return step as Extract<PlanStep, {op: 'causal'}>;
  const tensor = alignMask(mask, sizes, batch, heads);
  if (step.op === 'add') {
    const depth = sizes.get('d') ?? 1;
    return {op: 'add', tensor, factor: step.by.factor * depth ** step.by.power};
  }
  const condition = tf.cast(tensor, 'bool');
  const seen: tf.Tensor4D = step.visible ? condition : tf.logicalNot(condition);
  return {op: 'select', tensor: seen, value: step.value};
}

function alignMask(
  {tensor, letters}: Lettered,
  sizes: ReadonlyMap<string, number>,
  batch: string,
  heads: string,
): tf.Tensor4D {
  const wanted = `${batch}${heads}st`;
  const missing = [...wanted].filter((letter) => !letters.includes(letter)).join('');
  const own = missing + letters;
  let all = tf.reshape(tensor, [...Array<number>(missing.length).fill(1), ...tensor.shape]);
  const order = [...wanted].map((letter) => own.indexOf(letter));
  if (order.some((axis, i) => axis !== i)) all = tf.transpose(all, order);
  // Axes that become one must be all of 1 or all whole.
  const dims = [...all.shape];
  for (const [from, to] of [
    [0, batch.length],
    [batch.length, batch.length + heads.length],
  ] as const) {
    const part = [...wanted.slice(from, to)].map((letter) => sizes.get(letter) ?? 1);
    const isWide = all.shape.slice(from, to).some((size) => size !== 1);
    if (isWide) dims.splice(from, to - from, ...part);
  }
  if (dims.some((size, axis) => size !== all.shape[axis])) all = tf.broadcastTo(all, dims);
  const size = (from: number, to: number) => dims.slice(from, to).reduce((a, b) => a * b, 1);
  const middle = batch.length + heads.length;
  return tf.reshape(all, [
    size(0, batch.length),
    size(batch.length, middle),
    dims[middle] as number,
    dims[middle + 1] as number,
  ]);
}
