/** Puts one SageAttention node in the place of each attention of a GraphDef; pure data, no tfjs. */
import {encodePlan, PLAN_ATTRIBUTE, SAGE_OP, SCORE_SHAPE_OP} from './attention_plan.js';
import {findAttentions, type FoundAttention, type PlaceChoice} from './find_attentions.js';
import {
  GraphView,
  parseReference,
  type ConstantReader,
  type GraphNode,
  type GraphTopology,
} from './model_graph.js';
import type {RecipeOptions} from './model_attentions.js';
import type {ReplacementRow} from './report.js';

export interface RewriteOptions extends PlaceChoice {
  /** Nodes that must stay, with everything that they are computed from, beside the model's outputs. */
  readonly protect: ReadonlySet<string>;
  /** How each attention is computed, by the name of its node. */
  recipeOf(name: string): RecipeOptions;
}

export interface RewrittenGraph {
  /** A new topology; the given one is unchanged. */
  readonly topology: GraphTopology;
  readonly rows: readonly ReplacementRow[];
}

/**
 * @param outputs Names of the nodes that the model's signature gives out.
 * @param readConstant The model's weights.
 */
export function rewriteGraph(
  topology: GraphTopology,
  outputs: Iterable<string>,
  readConstant: ConstantReader,
  options: RewriteOptions,
): RewrittenGraph {
  const rows: ReplacementRow[] = [];
  const run = (nodes: readonly GraphNode[], kept: ReadonlySet<string>) =>
    rewriteNodes(nodes, new Set([...kept, ...options.protect]), readConstant, options, rows);
  const node = run(topology.node, new Set(outputs));
  const functions = topology.library?.function?.map((body) => {
    if (body.nodeDef === undefined) return body;
    const returned = Object.values(body.ret ?? {}).map(
      (reference) => parseReference(reference).name,
    );
    return {...body, nodeDef: run(body.nodeDef, new Set(returned))};
  });
  return {
    topology:
      functions === undefined
        ? {...topology, node}
        : {...topology, node, library: {...topology.library, function: functions}},
    rows,
  };
}

function rewriteNodes(
  nodes: readonly GraphNode[],
  kept: ReadonlySet<string>,
  readConstant: ConstantReader,
  options: RewriteOptions,
  rows: ReplacementRow[],
): GraphNode[] {
  const read = namesRead(nodes);
  const endings = nodes.filter(({name}) => !read.has(name)).map(({name}) => name);
  const graph = new GraphView(nodes, new Set([...kept, ...endings]), readConstant);
  const {found, left} = findAttentions(graph, options);
  let current = nodes.map((node) => ({...node}));
  for (const attention of found) {
    current = emit(current, attention, options.recipeOf(attention.output.name));
    const {output, pattern, remark} = attention;
    rows.push({node: output.name, pattern, replaced: true, reason: remark});
  }
  rows.push(...left.map((row) => ({...row, replaced: false})));
  return found.length === 0 ? current : withoutDead(current, read, kept);
}

function namesRead(nodes: readonly GraphNode[]): Set<string> {
  return new Set(nodes.flatMap(({input}) => (input ?? []).map((r) => parseReference(r).name)));
}

/** One attention's nodes out, its node in; who asked for the shape of the scores, or waited for them, is served. */
function emit(
  nodes: readonly GraphNode[],
  {output, plan, inputs, interior}: FoundAttention,
  options: RecipeOptions,
): GraphNode[] {
  const gone = new Set([...interior].map(({name}) => name));
  const waits = new Set(
    [...interior, output].flatMap(({input}) => (input ?? []).filter((r) => r.startsWith('^'))),
  );
  const controls = [...waits].filter((reference) => !gone.has(reference.slice(1)));
  const attribute = {s: btoa(encodePlan({plan, options}))};
  return nodes.flatMap((node): GraphNode[] => {
    if (node.name === output.name) {
      const attr = {[PLAN_ATTRIBUTE]: attribute, T: output.attr?.['T'] ?? {type: 'DT_FLOAT'}};
      return [{name: node.name, op: SAGE_OP, input: [...inputs, ...controls], attr}];
    }
    if (gone.has(node.name)) return [];
    if (node.op === 'Shape' && gone.has(parseReference(node.input?.[0] ?? '').name)) {
      const attr = {[PLAN_ATTRIBUTE]: attribute, T: {type: 'DT_INT32'}};
      // Of q and k alone: masks may be made from this very shape.
      return [{name: node.name, op: SCORE_SHAPE_OP, input: inputs.slice(0, 2), attr}];
    }
    const input = node.input?.flatMap((reference) => {
      const isGone = reference.startsWith('^') && gone.has(reference.slice(1));
      return isGone ? controls : [reference];
    });
    return [input === undefined ? node : {...node, input}];
  });
}

/** Without the nodes that were read before and are read no more. */
function withoutDead(
  nodes: readonly GraphNode[],
  before: ReadonlySet<string>,
  kept: ReadonlySet<string>,
): GraphNode[] {
  let alive = [...nodes];
  for (;;) {
    const names = namesRead(alive);
    const next = alive.filter(
      (node) =>
        names.has(node.name) ||
        kept.has(node.name) ||
        node.op === 'Placeholder' ||
        !before.has(node.name),
    );
    if (next.length === alive.length) return next;
    alive = next;
  }
}
