/** The replaced attentions of a loaded graph model: their options can be changed, and their runs observed. */
import type * as converter from '@tensorflow/tfjs-converter';
import {decodePlan, encodePlan, PLAN_ATTRIBUTE, SAGE_OP, SITE_ATTRIBUTE} from './attention_plan.js';
import {makeSite, openSite, type ObserverSlot} from './graph_op.js';
import {setModelAttentions, type AttentionSite} from './model_attentions.js';
import type {GraphNode, GraphTopology} from './model_graph.js';
import {openNodes, type OpenModel} from './open_graph_model.js';
import {execute, runOriginal, type GraphInputs} from './run_graph_model.js';

/** The attention nodes of a graph and of its functions. */
export function sageNodes(topology: GraphTopology): GraphNode[] {
  const bodies = topology.library?.function?.map(({nodeDef}) => nodeDef ?? []) ?? [];
  return [topology.node, ...bodies].flat().filter(({op}) => op === SAGE_OP);
}

/** What a model holds so that its sites live as long as it does. */
const liveSites = new WeakMap<object, object[]>();

/** Numbers the attention nodes of the running graph, so that their options can be changed; the saved graph has no numbers. */
export function openSites(
  model: converter.GraphModel,
  open: OpenModel,
  topology: GraphTopology,
): void {
  const written = new Map(sageNodes(topology).map((node) => [node.name, node]));
  const slot: ObserverSlot = {observer: null};
  const sites: AttentionSite[] = [];
  const live: object[] = [];
  for (const node of openNodes(open.executor.graph)) {
    const source = written.get(node.name);
    const text = source?.attr?.[PLAN_ATTRIBUTE]?.s;
    if (node.op !== SAGE_OP || source === undefined || typeof text !== 'string') continue;
    const {plan, options} = decodePlan(atob(text));
    const site = makeSite(node.name, options, (changed) => {
      const attribute = {s: btoa(encodePlan({plan, options: changed}))};
      source.attr = {...source.attr, [PLAN_ATTRIBUTE]: attribute};
    });
    const opened = openSite(site, slot);
    node.rawAttrs = {...node.rawAttrs, [SITE_ATTRIBUTE]: {i: opened.id}};
    sites.push(site);
    live.push(opened.live);
  }
  liveSites.set(model, live);
  setModelAttentions<GraphInputs>(model, {
    sites,
    run: (inputs) => execute(model, inputs),
    runOriginal: (inputs) => runOriginal(model, inputs),
    observe(observer) {
      slot.observer = observer;
    },
  });
}
