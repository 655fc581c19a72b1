/**
 * The graph op that stands for an attention, in the user's copy of tfjs-converter. A node carries its plan; a node of a
 * model that was replaced in this process also carries a number, by which its options can be changed while it lives.
 */
import * as converter from '@tensorflow/tfjs-converter';
import * as tf from '@tensorflow/tfjs-core';
import {scoreShape} from './aligned_operands.js';
import {
  decodePlan,
  PLAN_ATTRIBUTE,
  SAGE_OP,
  SCORE_SHAPE_OP,
  SITE_ATTRIBUTE,
  type NodePlan,
} from './attention_plan.js';
import type {AttentionObserver, AttentionSite, RecipeOptions} from './model_attentions.js';
import {runAttention} from './run_attention.js';

/** What a custom op is given: tensors, and attributes decoded by the converter. */
interface OpNode {
  readonly inputs: readonly tf.Tensor[];
  readonly attrs: Readonly<Record<string, unknown>>;
}

/** Observers are shared by the sites of one model. */
export interface ObserverSlot {
  observer: AttentionObserver | null;
}

interface LiveSite {
  readonly site: AttentionSite;
  readonly slot: ObserverSlot;
}

/** Weak, so that a model's sites go with the model, which holds them. */
const sites = new Map<number, WeakRef<LiveSite>>();
const gone = new FinalizationRegistry<number>((id) => void sites.delete(id));
let lastSite = 0;

const plans = new Map<string, NodePlan>();

/** More plans than any model has; then the memory of parsed texts starts anew. */
const MAX_PLANS = 4096;

function planOf(json: string): NodePlan {
  let plan = plans.get(json);
  if (plan === undefined) {
    if (plans.size >= MAX_PLANS) plans.clear();
    plan = decodePlan(json);
    plans.set(json, plan);
  }
  return plan;
}

/** Registers both ops; a second time changes nothing. */
export function registerGraphOps(): void {
  converter.registerOp(SAGE_OP, runSageNode as never);
  converter.registerOp(SCORE_SHAPE_OP, runShapeNode as never);
}

function runSageNode({inputs, attrs}: OpNode): tf.Tensor {
  const {plan, options} = planOf(attrs[PLAN_ATTRIBUTE] as string);
  const id = attrs[SITE_ATTRIBUTE];
  const live = typeof id === 'number' ? sites.get(id)?.deref() : undefined;
  const output = runAttention(plan, live?.site.options ?? options, inputs);
  const observer = live?.slot.observer ?? null;
  if (live !== undefined && observer !== null) {
    observer(live.site.name, output, (other) => runAttention(plan, other, inputs));
  }
  return output;
}

function runShapeNode({inputs, attrs}: OpNode): tf.Tensor {
  const {plan} = planOf(attrs[PLAN_ATTRIBUTE] as string);
  const [q, k] = inputs as [tf.Tensor, tf.Tensor];
  return tf.tensor1d(scoreShape(plan, q, k), 'int32');
}

/** A number for a node's site. The caller keeps what is returned for as long as its model lives. */
export function openSite(site: AttentionSite, slot: ObserverSlot): {id: number; live: object} {
  lastSite += 1;
  const live: LiveSite = {site, slot};
  sites.set(lastSite, new WeakRef(live));
  gone.register(live, lastSite);
  return {id: lastSite, live};
}

/** A site whose options are kept here and handed to `save` at every change. */
export function makeSite(
  name: string,
  initial: RecipeOptions,
  save: (options: RecipeOptions) => void,
): AttentionSite {
  let options = initial;
  return {
    name,
    get options() {
      return options;
    },
    setOptions(changed) {
      options = changed;
      save(changed);
    },
  };
}
