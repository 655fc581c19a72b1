/** From the arguments of one call to checked tensors and a problem: what every form of the op shares. */
import * as tf from '@tensorflow/tfjs-core';
import {chooseEngine} from '../engines/choose_engine.js';
import {isRefusal, resolveRecipe, type Precision, type Recipe} from '../numerics/recipes.js';
import type {AttentionProblem, MaskStrides} from '../problem.js';
import {sageConfig} from '../runtime/config.js';
import {SageAttentionError, type SageErrorCode} from '../runtime/errors.js';
import {isDecoding} from './decoding.js';
import {checkOptions, type CheckedOptions, type SageAttentionOptions} from './options.js';
import {
  attentionSizes,
  attentionTensor,
  type AttentionSizes,
  maskStrides,
  maskTensor,
  tokenStrides,
} from './tensor_arguments.js';

/** Inputs of the kernel; `mask` is absent, never undefined, when there is none (tfjs' tape insists). */
export interface AttentionInputs {
  readonly q: tf.Tensor;
  readonly k: tf.Tensor;
  readonly v: tf.Tensor;
  readonly mask?: tf.Tensor;
}

export interface PreparedCall {
  readonly inputs: AttentionInputs;
  readonly problem: AttentionProblem;
  readonly returnLse: boolean;
}

const NO_MASK: MaskStrides = {batch: 0, head: 0, query: 0, key: 0};

const REFUSAL_CODES = {
  granularity: 'unsupported-granularity',
  pvAccumulator: 'unsupported-accumulator',
  variant: 'unsupported-variant',
} as const satisfies Record<string, SageErrorCode>;

/**
 * Checks everything and describes the call as a problem.
 * @param gradientWanted Whether lse is computed although the caller does not ask for it.
 */
export function prepareCall(
  operation: string,
  q: unknown,
  k: unknown,
  v: unknown,
  options: SageAttentionOptions | undefined,
  gradientWanted: boolean,
): PreparedCall {
  const checked = checkOptions(operation, options);
  const $q = attentionTensor(operation, 'q', q);
  const $k = attentionTensor(operation, 'k', k);
  const $v = attentionTensor(operation, 'v', v);
  const {layout} = checked;
  const sizes = attentionSizes(operation, $q, $k, $v, layout);
  const mask = checked.mask === null ? null : maskTensor(operation, checked.mask);
  const {batch, qHeads, kvHeads, qLen, kvLen, qkDim, vDim} = sizes;
  // Spelled out: spreading `sizes` here would cost a small call as much as its attention.
  const problem: AttentionProblem = {
    batch,
    qHeads,
    kvHeads,
    qLen,
    kvLen,
    qkDim,
    vDim,
    q: tokenStrides(qHeads, qLen, qkDim, layout),
    k: tokenStrides(kvHeads, kvLen, qkDim, layout),
    v: tokenStrides(kvHeads, kvLen, vDim, layout),
    o: tokenStrides(qHeads, qLen, vDim, layout),
    scale: Number.isNaN(checked.scale) ? 1 / Math.sqrt(qkDim) : checked.scale,
    causal: checked.causal,
    windowLeft: checked.windowLeft,
    windowRight: checked.windowRight,
    maskKind: mask === null ? 'none' : mask.dtype === 'bool' ? 'boolean' : 'additive',
    mask: mask === null ? NO_MASK : maskStrides(operation, mask.shape, $q.rank, sizes),
    wantLse: checked.returnLse || gradientWanted,
    recipe: chooseRecipe(operation, checked, sizes),
  };
  return {
    inputs: mask === null ? {q: $q, k: $k, v: $v} : {q: $q, k: $k, v: $v, mask},
    problem,
    returnLse: checked.returnLse,
  };
}

const defaultRecipes = new Map<Precision, Recipe>();

function chooseRecipe(operation: string, checked: CheckedOptions, sizes: AttentionSizes): Recipe {
  const {recipeChoice} = checked;
  const asked = checked.precision ?? 'auto';
  const wanted = asked === 'auto' ? sageConfig().precision : asked;
  const choice = chooseEngine(tf.getBackend(), wanted, sizes, checked.causal !== 'none');
  // Faster there, and more accurate; whoever chooses fields of a recipe gets that recipe.
  const unquantised =
    wanted === 'auto' &&
    recipeChoice === null &&
    (choice.engine === 'native' || choice.onGpu) &&
    isDecoding(sizes);
  const precision = unquantised ? 'exact' : choice.precision;
  if (recipeChoice === null) {
    const known = defaultRecipes.get(precision);
    if (known !== undefined) return known;
  }
  const recipe = resolveRecipe(precision, recipeChoice ?? {});
  if (isRefusal(recipe)) {
    throw new SageAttentionError({
      code: REFUSAL_CODES[recipe.argument],
      argument: recipe.argument,
      message:
        `${operation}: \`${recipe.argument}\` is '${recipe.received}', but precision '${precision}' ` +
        `takes ${recipe.expected}.`,
      hint:
        asked === 'auto'
          ? `'${precision}' was chosen for this machine; name a precision that has it, or leave ${recipe.argument} out.`
          : `Leave ${recipe.argument} out; docs/options.md says what each recipe honours.`,
    });
  }
  if (recipeChoice === null) defaultRecipes.set(precision, recipe);
  return recipe;
}
