/**
 * The way from the softmax back to the product of queries and keys: scale, biases and masks, in the order in which they
 * are applied. Whatever else stands on the way, or reads from it, keeps the attention as it is.
 */
import type {PlanStep, Scalar} from '../attention_plan.js';
import {passesThrough, type GraphNode, type GraphView} from '../model_graph.js';
import {constantTriangle, HIDING_VALUE} from './causal_constant.js';
import type {TokenAxis} from './causal_comparison.js';
import {indicator, type Indicator} from './indicators.js';
import {filledValue} from './filled_value.js';
import {multipliedMask} from './multiplied_mask.js';
import {describeObstacle} from './obstacles.js';
import {isOnes} from './ones.js';
import {penalty} from './penalty.js';
import {findProduct, isOnTheWay} from './product_search.js';
import {isProduct, scoreProduct, type ScoreProduct} from './products.js';
import {product, raised, scalarValue} from './scalar_values.js';
import {tokenAxes} from './token_axes.js';

/** A step whose tensor is still a reference in the graph. */
export type PathStep =
  | {readonly op: 'add'; readonly reference: string; readonly by: Scalar}
  | {
      readonly op: 'select';
      readonly reference: string;
      readonly visible: boolean;
      readonly value: number;
    }
  | (Extract<PlanStep, {op: 'causal'}> & {
      /** The condition that was recognised; null where the triangle is added. */
      readonly reference: string | null;
    });

export interface ScorePath {
  readonly product: ScoreProduct;
  readonly productNode: GraphNode;
  readonly scale: Scalar;
  /** As applied: the first is nearest to the product. */
  readonly steps: readonly PathStep[];
  /** Nodes that vanish, product included. */
  readonly interior: ReadonlySet<GraphNode>;
  /** Those of them that have the shape of the product: nothing in between has broadcast it. */
  readonly plain: ReadonlySet<GraphNode>;
  /** Shapes of the Reshape nodes, the one nearest to the softmax first. */
  readonly reshapes: readonly string[];
  /** Steps that lie between the product and the Reshape nearest to it. */
  readonly stepsBeforeReshape: number;
  /** What the report should say about a replaced attention; null for nothing. */
  readonly remark: string | null;
}

const ONE: Scalar = {factor: 1, power: 0};

/** Deep enough for every model seen; a path that is longer is left alone. */
const MAX_NODES = 24;

/**
 * @param scores Reference to what the softmax is taken of.
 * @param above Nodes of the softmax that may read the scores too.
 * @returns The path, or why there is none.
 */
export function scorePath(
  graph: GraphView,
  scores: string,
  above: ReadonlySet<GraphNode>,
): ScorePath | string {
  const walk = new Walk(graph, above);
  return walk.run(scores);
}

class Walk {
  private readonly interior = new Set<GraphNode>();
  /** Collected from the softmax downwards: the last one applied comes first. */
  private readonly found: ({readonly scale: Scalar} | PathStep)[] = [];
  private readonly reshapes: string[] = [];
  private stepsAtLastReshape = 0;
  /** Of the one Transpose on the way, and how many steps had been found above it. */
  private permutation: readonly number[] | null = null;
  private stepsAtTranspose = 0;
  /** How many nodes had been taken when the last step with a tensor, or Reshape, was met. */
  private nodesAbove = 0;
  private remark: string | null = null;

  constructor(
    private readonly graph: GraphView,
    private readonly above: ReadonlySet<GraphNode>,
  ) {}

  run(scores: string): ScorePath | string {
    let reference = scores;
    for (let n = 0; n < MAX_NODES; n += 1) {
      const node = this.graph.producer(reference);
      if (node === null) return 'the softmax is not of a product of queries and keys';
      if (n === 0 && !this.leads(reference)) return this.noProduct(reference);
      const refusal = this.take(node);
      if (refusal !== null) return refusal;
      if (isProduct(node)) return this.finish(node);
      const next = this.step(node);
      if ('refusal' in next) return next.refusal;
      reference = next.reference;
    }
    return 'the way from the softmax to the product is too long';
  }

  /** Notes a node as one that vanishes; the refusal when it must stay. */
  private take(node: GraphNode): string | null {
    if (this.graph.isKept(node)) return `the scores ('${node.name}') are an output of the model`;
    const outside = this.graph
      .valueReaders(node)
      .filter((reader) => !this.interior.has(reader) && !this.above.has(reader));
    if (outside.length > 0) {
      return `the scores ('${node.name}') are also read by '${outside[0]?.name ?? ''}'`;
    }
    this.interior.add(node);
    return null;
  }

  private finish(node: GraphNode): ScorePath | string {
    const scores = scoreProduct(this.graph, node, this.permutation);
    if (typeof scores === 'string') return scores;
    const below = this.found.slice(
      this.permutation === null ? this.found.length : this.stepsAtTranspose,
    );
    if (below.some((entry) => 'op' in entry)) {
      return 'the scores are masked before their axes are exchanged';
    }
    const isDepth = tokenAxes(
      this.graph,
      {product: scores, node, permutation: this.permutation},
      this.interior,
    ).isDepth;
    // From the product upwards: a factor multiplies everything that was applied before it.
    let scale: Scalar = ONE;
    let steps: PathStep[] = [];
    for (const entry of [...this.found].reverse()) {
      if (!('scale' in entry)) {
        steps.push(entry);
        continue;
      }
      const by = entry.scale;
      scale = product(scale, by) as Scalar;
      steps = steps.map((step) => scaledStep(step, by));
    }
    const powered = [scale, ...steps.flatMap((step) => (step.op === 'add' ? [step.by] : []))];
    if (powered.some(({power}) => power !== 0) && !this.depthReferences.every(isDepth)) {
      return 'the scores are scaled by a number that is computed in a way that is not understood';
    }
    return {
      product: scores,
      productNode: node,
      scale,
      steps,
      interior: this.interior,
      plain: new Set([...this.interior].slice(this.nodesAbove)),
      reshapes: this.reshapes,
      stepsBeforeReshape: this.found.length - this.stepsAtLastReshape,
      remark: this.remark,
    };
  }

  private step(node: GraphNode): {reference: string} | {refusal: string} {
    const [a, b] = this.graph.inputs(node);
    if (a === undefined) return {refusal: `the node '${node.name}' has no input`};
    if (passesThrough(node)) return {reference: a};
    switch (node.op) {
      case 'Add':
      case 'AddV2':
      case 'Sub':
        return this.addition(node, a, b ?? '');
      case 'Mul':
        return this.scaling(a, b ?? '', 1);
      case 'RealDiv':
      case 'Div':
        return this.scaling(a, b ?? '', -1);
      case 'SelectV2':
      case 'Select':
        return this.selection(node);
      case 'Maximum':
        return this.lowerBound(a, b ?? '');
      case 'Transpose': {
        const permutation = this.graph.list(b);
        if (permutation === null || this.permutation !== null) {
          return {refusal: describeObstacle(node)};
        }
        this.permutation = permutation;
        this.stepsAtTranspose = this.found.length;
        this.nodesAbove = this.interior.size;
        return {reference: a};
      }
      case 'Reshape':
        this.reshapes.push(b ?? '');
        this.stepsAtLastReshape = this.found.length;
        this.nodesAbove = this.interior.size;
        return {reference: a};
      default:
        return {refusal: describeObstacle(node)};
    }
  }

  private addition(node: GraphNode, a: string, b: string): {reference: string} | {refusal: string} {
    const multiplied = multipliedMask(this.graph, node, this.tokenAxis, (reference) =>
      this.leads(reference),
    );
    if (multiplied !== null) {
      this.interior.add(multiplied.product);
      const {condition, value} = multiplied;
      this.hide(condition, true, value, multiplied.reference);
      return {reference: multiplied.scores};
    }
    const sign = node.op === 'Sub' ? -1 : 1;
    if (this.leads(a)) return this.add(b, sign, a);
    if (node.op === 'Sub') return {refusal: 'the scores are subtracted from something'};
    return this.add(a, 1, b);
  }

  private add(reference: string, sign: 1 | -1, scores: string): {reference: string} {
    const constant = this.graph.scalar(reference);
    // A constant on every score is nothing to a softmax; masks of a value compare themselves with scores, though.
    const selects = this.found.some((step) => 'op' in step && step.op !== 'add');
    if (constant !== null && Number.isFinite(constant) && !selects) return {reference: scores};
    const triangle = constantTriangle(this.graph.constant(reference));
    if (triangle?.kind === 'penalty' && sign === 1) {
      this.found.push({
        op: 'causal',
        corner: triangle.corner,
        mode: 'add',
        value: triangle.value,
        reference: null,
      });
      return {reference: scores};
    }
    const hidden = penalty(this.graph, reference, this.tokenAxis);
    if (hidden !== null && sign * hidden.value <= HIDING_VALUE) {
      this.found.push({
        op: 'causal',
        corner: hidden.corner,
        mode: 'add',
        value: sign * hidden.value,
        reference: null,
      });
      if (hidden.isBandPart) this.remark = BAND_PART_REMARK;
      return {reference: scores};
    }
    this.found.push({op: 'add', reference, by: {factor: sign, power: 0}});
    this.nodesAbove = this.interior.size;
    return {reference: scores};
  }

  private scaling(a: string, b: string, power: 1 | -1): {reference: string} | {refusal: string} {
    const [scores, by] = this.leads(a) ? [a, b] : [b, a];
    if (power === -1 && scores !== a) return {refusal: 'something is divided by the scores'};
    const value = raised(scalarValue(this.graph, by, this.collectDepth), power);
    if (value === null || !Number.isFinite(value.factor)) {
      return {
        refusal: 'the scores are multiplied by data (a temperature or a gate), not by one number',
      };
    }
    this.found.push({scale: value});
    return {reference: scores};
  }

  private selection(node: GraphNode): {reference: string} | {refusal: string} {
    const [condition, a, b] = this.graph.inputs(node);
    if (condition === undefined || a === undefined || b === undefined) {
      return {refusal: `the node '${node.name}' lacks inputs`};
    }
    const seenWhenTrue = this.leads(a);
    const [scores, other] = seenWhenTrue ? [a, b] : [b, a];
    const value = filledValue(this.graph, other);
    if (value === null) return {refusal: 'the scores are mixed with other scores by a condition'};
    if (!(value <= HIDING_VALUE)) {
      return {refusal: `hidden keys get a score of ${value}, which does not hide them`};
    }
    const known = indicator(this.graph, condition, this.tokenAxis);
    this.hide(known, seenWhenTrue, value, condition);
    return {reference: scores};
  }

  /** A condition on scores: seen where it is `seenWhen`, else `value`. */
  private hide(known: Indicator | null, seenWhen: boolean, value: number, reference: string): void {
    // Both conditions of an `and` hide by themselves.
    const both = this.graph.producer(reference);
    if (both?.op === (seenWhen ? 'LogicalAnd' : 'LogicalOr')) {
      for (const part of this.graph.inputs(both)) {
        if (seenWhen && isOnes(this.graph, part)) continue;
        this.hide(indicator(this.graph, part, this.tokenAxis), seenWhen, value, part);
      }
      return;
    }
    if (known?.corner != null && known.inverted !== seenWhen) {
      this.found.push({op: 'causal', corner: known.corner, mode: 'select', value, reference});
      if (known.isBandPart) this.remark = BAND_PART_REMARK;
      return;
    }
    this.found.push({op: 'select', reference, visible: seenWhen, value});
    this.nodesAbove = this.interior.size;
  }

  /** max(scores, -1e38) keeps -Infinity out and changes nothing else. */
  private lowerBound(a: string, b: string): {reference: string} | {refusal: string} {
    const [scores, bound] = this.leads(a) ? [a, b] : [b, a];
    const value = this.graph.scalar(bound);
    if (value !== null && value <= -1e30) return {reference: scores};
    return {refusal: 'the scores are bounded from below'};
  }

  private leads(reference: string): boolean {
    return findProduct(this.graph, reference, this.permutation) !== null;
  }

  /** Why a softmax is of no product: the first thing that stands in the way. */
  private noProduct(reference: string): string {
    let node = this.graph.producer(reference);
    for (let i = 0; node !== null && i < MAX_NODES; i += 1) {
      if (isProduct(node)) {
        const scores = scoreProduct(this.graph, node, this.permutation);
        return typeof scores === 'string' ? scores : describeObstacle(node);
      }
      if (!isOnTheWay(node)) return describeObstacle(node);
      node = this.graph.producer(this.graph.inputs(node)[0]);
    }
    return 'the softmax is not of a product of queries and keys';
  }

  private readonly depthReferences: DepthReference[] = [];

  /** Takes any length for head_dim; `finish` asks whether it was. */
  private readonly collectDepth = (reference: string, axis: number): boolean => {
    this.depthReferences.push([reference, axis]);
    return true;
  };

  /** What is known of tokens before the product is reached: the product that lies below. */
  private readonly tokenAxis: TokenAxis = (reference, axis) => {
    this.tokens ??= this.findTokens();
    return this.tokens(reference, axis);
  };

  private tokens: TokenAxis | null = null;

  /** Of the node that was taken last, whose inputs lead to the product. */
  private findTokens(): TokenAxis {
    const current = [...this.interior].at(-1);
    for (const input of current === undefined ? [] : this.graph.inputs(current)) {
      const found = findProduct(this.graph, input, this.permutation);
      if (found !== null) return tokenAxes(this.graph, found, null).tokenAxis;
    }
    return () => null;
  }
}

type DepthReference = readonly [reference: string, axis: number];

const BAND_PART_REMARK =
  'causal by MatrixBandPart, which tfjs computes without its upper bound: the model was not causal here before';

function scaledStep(step: PathStep, by: Scalar): PathStep {
  if (step.op === 'add') return {...step, by: product(step.by, by) as Scalar};
  // A power of head_dim only moves a value that is far below every score anyway.
  return {...step, value: step.value * by.factor};
}
