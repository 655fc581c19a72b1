/**
 * What one attention of a graph computes, as data: the bridge between the matchers, the graph node that takes the
 * attention's place, and the code that runs this node.
 *
 * Axes are letters: `s` queries, `t` keys, `d` head_dim of q and k, `e` head_dim of v, and from `z` backwards, counted
 * from the right, the other axes of the scores (`z` is mostly heads, `y` the batch). `...` in front of the last two
 * stands for as many of these as the tensor has, as matrix products broadcast them.
 */
import type {CausalKind} from '../problem.js';
import type {RecipeOptions} from './model_attentions.js';

/** factor · head_dim^power. */
export interface Scalar {
  readonly factor: number;
  readonly power: number;
}

/** What happens to the scores between scale·q·k and the softmax, in this order. `input` counts the node's inputs. */
export type PlanStep =
  /** scores + factor·input */
  | {readonly op: 'add'; readonly input: number; readonly by: Scalar}
  /** `value` where the input (as bool) is not `visible`, else the scores */
  | {
      readonly op: 'select';
      readonly input: number;
      readonly visible: boolean;
      readonly value: number;
    }
  /** `value` instead of, or added to, the scores of keys behind the diagonal */
  | {
      readonly op: 'causal';
      readonly corner: Exclude<CausalKind, 'none'>;
      readonly mode: 'select' | 'add';
      readonly value: number;
    };

export interface AttentionPlan {
  readonly q: string;
  readonly k: string;
  readonly v: string;
  readonly scores: string;
  readonly out: string;
  readonly scale: Scalar;
  /** Multiplies the output. */
  readonly outputFactor: number;
  readonly steps: readonly PlanStep[];
  /** Input that holds [batch, heads, queries, keys]: the axis `z` of q, k, v is batch and heads folded. null: none. */
  readonly unfold: number | null;
  /** Whether what the one hiding step hides is made 0 behind the softmax too: a row that sees nothing gives 0. */
  readonly zeroHidden: boolean;
}

/** What the node's attribute holds: the plan and how to compute it. */
export interface NodePlan {
  readonly plan: AttentionPlan;
  readonly options: RecipeOptions;
}

export const SAGE_OP = 'SageAttention';
/** The shape that the scores would have: models ask for it where the scores themselves are gone. */
export const SCORE_SHAPE_OP = 'AttentionScoreShape';
export const PLAN_ATTRIBUTE = 'plan';
/** Number of the site within this process; never saved. */
export const SITE_ATTRIBUTE = 'site';

const VERSION = 1;

/** tfjs hands string attributes to custom ops in lower case, so upper case is written as `_` and the small letter. */
function toSnake(name: string): string {
  return name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

function toCamel(name: string): string {
  return name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());
}

/** One line of JSON in lower case; an infinite value is null. */
export function encodePlan({plan, options}: NodePlan): string {
  const written = {
    version: VERSION,
    ...Object.fromEntries(Object.entries(plan).map(([key, value]) => [toSnake(key), value])),
    options: Object.fromEntries(
      Object.entries(options)
        .filter(([, value]) => value !== undefined)
        .map(([key, value]) => [toSnake(key), value]),
    ),
  };
  return JSON.stringify(written);
}

/** @throws Error when it is no plan that this version of the package wrote. */
export function decodePlan(json: string): NodePlan {
  const {version, options, ...rest} = JSON.parse(json) as Record<string, unknown> & {
    options: object;
  };
  if (version !== VERSION) throw new Error(`plan of version ${String(version)}, expected 1`);
  const plan = Object.fromEntries(
    Object.entries(rest).map(([key, value]) => [toCamel(key), value]),
  ) as unknown as AttentionPlan;
  return {
    plan: {
      ...plan,
      steps: plan.steps.map((step) =>
        step.op === 'add'
          ? step
          : {...step, value: (step.value as number | null) ?? Number.NEGATIVE_INFINITY},
      ),
    },
    options: Object.fromEntries(
      Object.entries(options).map(([key, value]) => [toCamel(key), value as unknown]),
    ),
  };
}

/** Letters of a tensor of `rank`: `...` spelled out. */
export function spellLetters(letters: string, rank: number): string {
  if (!letters.startsWith('...')) return letters;
  const last = letters.slice(3);
  return batchLetters(rank - last.length) + last;
}

/** The last `count` of the letters for batch-like axes. */
export function batchLetters(count: number): string {
  return count <= 0 ? '' : 'uvwxyz'.slice(-count);
}

/** How many batch-like axes letters can name. */
export const MAX_BATCH_AXES = 6;
