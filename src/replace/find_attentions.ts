/** Finds the attentions of one graph (or function body) by the matchers, and says of every other softmax why it is none. */
import type {AttentionPlan, PlanStep} from './attention_plan.js';
import {foldedHeads} from './matchers/folded_heads.js';
import {scorePath, type PathStep, type ScorePath} from './matchers/score_path.js';
import {findSoftmaxes, type SoftmaxCandidate, type SoftmaxMatch} from './matchers/softmax.js';
import {nodeBehind, valuePath, type ValuePath} from './matchers/value_path.js';
import type {GraphNode, GraphView} from './model_graph.js';

/** An attention that can be replaced. */
export interface FoundAttention {
  /** The node whose name and place the attention takes. */
  readonly output: GraphNode;
  readonly plan: AttentionPlan;
  /** q, k, v, then what the steps read. */
  readonly inputs: readonly string[];
  /** Nodes that nothing needs any more. */
  readonly interior: ReadonlySet<GraphNode>;
  readonly pattern: string;
  readonly remark: string | null;
}

/** A place that is left as it is. */
export interface LeftAlone {
  readonly node: string;
  readonly pattern: string;
  readonly reason: string;
}

/** Which places may be replaced. Names are those of the report's rows, or of the softmax. */
export interface PlaceChoice {
  readonly exclude: ReadonlySet<string>;
  /** null: all. */
  readonly only: ReadonlySet<string> | null;
}

export interface Findings {
  readonly found: readonly FoundAttention[];
  readonly left: readonly LeftAlone[];
}

export function findAttentions(graph: GraphView, choice: PlaceChoice): Findings {
  const found: FoundAttention[] = [];
  const left: LeftAlone[] = [];
  const taken = new Set<GraphNode>();
  for (const candidate of findSoftmaxes(graph)) {
    const result = matchOrTell(graph, candidate, choice);
    if ('plan' in result) {
      if ([...result.interior, result.output].some((node) => taken.has(node))) {
        const reason = 'it shares nodes with an attention that was replaced';
        left.push({node: result.output.name, pattern: result.pattern, reason});
        continue;
      }
      for (const node of [...result.interior, result.output]) taken.add(node);
      found.push(result);
    } else left.push(result);
  }
  return {found, left};
}

/** A node that is written in a way that nothing foresaw keeps one attention as it is, not the whole model. */
function matchOrTell(
  graph: GraphView,
  candidate: SoftmaxCandidate,
  choice: PlaceChoice,
): FoundAttention | LeftAlone {
  try {
    return match(graph, candidate, choice);
  } catch (error) {
    const {name, op} = candidate.anchor;
    const what = error instanceof Error ? error.message : String(error);
    return {node: name, pattern: op.toLowerCase(), reason: `its nodes cannot be read: ${what}`};
  }
}

function match(
  graph: GraphView,
  candidate: SoftmaxCandidate,
  choice: PlaceChoice,
): FoundAttention | LeftAlone {
  const {anchor} = candidate;
  const pattern = anchor.op === 'Exp' ? 'softmax by exponentials' : anchor.op.toLowerCase();
  const leave = (reason: string, node = anchor.name): LeftAlone => ({node, pattern, reason});
  if ('reason' in candidate) return leave(candidate.reason);
  const behind = nodeBehind(graph, candidate.result);
  const place = behind?.name ?? anchor.name;
  const path = scorePath(graph, candidate.scores, candidate.interior);
  if (typeof path === 'string') return leave(path, place);
  const values = valuePath(graph, candidate, path.product.scores);
  if (typeof values === 'string') return leave(values, place);
  const name = values.output.name;
  const names = [name, place, anchor.name];
  if (names.some((n) => choice.exclude.has(n))) return leave('excluded by the options', name);
  if (choice.only !== null && !names.some((n) => choice.only?.has(n))) {
    return leave('not among the nodes that the options name', name);
  }
  const found = assemble(graph, candidate, path, values);
  if (found === null) return leave(FOLDING, name);
  const measured = [...found.interior].find(
    (node) => !path.plain.has(node) && graph.consumers(node).some((c) => c.node.op === 'Shape'),
  );
  if (measured !== undefined) return leave(`the shape of '${measured.name}' is asked for`, name);
  return found;
}

const FOLDING = 'scores are reshaped, or probabilities masked, in a way that is not understood';

/** null when scores are reshaped for another end than to unfold heads, or probabilities masked by another condition. */
function assemble(
  graph: GraphView,
  softmax: SoftmaxMatch,
  path: ScorePath,
  values: ValuePath,
): FoundAttention | null {
  const reshapes = [...(values.reshape === null ? [] : [values.reshape]), ...path.reshapes];
  const {q, k} = path.product;
  const {v} = values.product;
  const inputs = [q.reference, k.reference, v.reference];
  let unfold: number | null = null;
  if (reshapes.length > 0) {
    const shape = foldedHeads(graph, reshapes);
    if (shape === null || path.stepsBeforeReshape > 0) return null;
    unfold = inputs.push(shape) - 1;
  }
  const {zeroed} = values;
  if (zeroed !== null && !isHidden(graph, path.steps, zeroed)) return null;
  const steps = path.steps.map((step): PlanStep => planStep(step, inputs));
  const interior = new Set([...path.interior, ...softmax.interior, ...values.interior]);
  interior.delete(values.output);
  return {
    output: values.output,
    plan: {
      q: q.letters,
      k: k.letters,
      v: v.letters,
      scores: path.product.scores,
      out: values.product.out,
      scale: path.scale,
      outputFactor: values.factor,
      steps,
      unfold,
      zeroHidden: zeroed !== null,
    },
    inputs,
    interior,
    pattern: describe(softmax, path, steps, unfold !== null),
    remark: path.remark,
  };
}

function planStep(step: PathStep, inputs: string[]): PlanStep {
  if (step.op === 'causal') {
    const {op, corner, mode, value} = step;
    return {op, corner, mode, value};
  }
  const {reference, ...rest} = step;
  return {...rest, input: inputs.push(reference) - 1};
}

/** Whether what is made 0 behind the softmax is what the one hiding step hides in front of it. */
function isHidden(graph: GraphView, steps: readonly PathStep[], condition: string): boolean {
  const [step, ...more] = steps.filter(({op}) => op !== 'add');
  return (
    step !== undefined &&
    more.length === 0 &&
    step.op !== 'add' &&
    step.reference !== null &&
    (step.op === 'causal' || step.visible) &&
    graph.same(step.reference, condition)
  );
}

/** Such as `softmax(q·k · scale + mask, causal)·v`. */
function describe(
  softmax: SoftmaxMatch,
  path: ScorePath,
  steps: readonly PlanStep[],
  isFolded: boolean,
): string {
  const isScaled = path.scale.factor !== 1 || path.scale.power !== 0;
  const parts = steps.map((step) =>
    step.op === 'add' ? ' + mask' : step.op === 'select' ? ', where mask' : ', causal',
  );
  const product = path.productNode.op === 'Einsum' ? 'Einsum' : 'MatMul';
  const notes = [
    product,
    ...(softmax.anchor.op === 'Exp' ? ['softmax by exponentials'] : []),
    ...(softmax.lateSum === null ? [] : ['divided after the values']),
    ...(isFolded ? ['heads folded into the batch'] : []),
  ];
  return `softmax(q·k${isScaled ? ' · scale' : ''}${parts.join('')})·v (${notes.join(', ')})`;
}
