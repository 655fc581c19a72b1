/** Gradients of the two kernels: the first order is a kernel of its own, the second is refused in words. */
import * as tf from '@tensorflow/tfjs-core';
import {forwardAttributes, SageAttention, SageAttentionGrad} from '../kernels/kernel_names.js';
import {SageAttentionError} from '../runtime/errors.js';

/**
 * Names of the inputs to save, of which a call may lack some (mask). tfjs maps the names to tensors and clones each,
 * and would fail on a missing one; here `map` leaves it out.
 */
class PresentInputs extends Array<string> {
  override map<T>(look: (name: string, index: number, names: string[]) => T): T[] {
    return Array.from(this, (name, index) => look(name, index, this)).filter(
      (found) => found !== undefined,
    );
  }
}

/** Saved: q, k, v, mask if there is one, o, lse if the forward call computed it. */
export const sageAttentionGradConfig: tf.GradConfig = {
  kernelName: SageAttention,
  inputsToSave: PresentInputs.of('q', 'k', 'v', 'mask'),
  outputsToSave: [true, true],
  gradFunc(dy, saved, attrs) {
    const {problem} = forwardAttributes(attrs);
    const tensors = saved.slice();
    const [q, k, v] = tensors.splice(0, 3) as [tf.Tensor, tf.Tensor, tf.Tensor];
    const mask = problem.maskKind === 'none' ? undefined : tensors.shift();
    const forwardInputs = mask === undefined ? {q, k, v} : {q, k, v, mask};
    const [o, lse] = problem.wantLse
      ? (tensors as [tf.Tensor, tf.Tensor])
      : // Somebody ran the kernel without lse; it is recomputed rather than guessed.
        runKernel(SageAttention, forwardInputs, {problem: {...problem, wantLse: true}});
    if (o === undefined || lse === undefined) throw new Error('SageAttention saved no output.');
    const [dO, dLse] = Array.isArray(dy) ? dy : [dy];
    const inputs = {
      ...forwardInputs,
      o,
      lse,
      dO: dO as tf.Tensor,
      ...(problem.wantLse && dLse !== undefined ? {dLse} : {}),
    };
    const differentiate = (wantMaskGradient: boolean) =>
      runKernel(SageAttentionGrad, inputs, {problem, wantMaskGradient});
    // All three at once, now: tfjs calls the closures inside a tidy that would dispose what they share.
    const [dQ, dK, dV] = differentiate(false) as [tf.Tensor, tf.Tensor, tf.Tensor];
    return {
      q: () => dQ,
      k: () => dK,
      v: () => dV,
      // Called for a trained mask only; a constant one shall not cost N x N floats of gradient.
      mask: () =>
        problem.maskKind === 'additive'
          ? (differentiate(true)[3] as tf.Tensor)
          : tf.zeros(mask?.shape ?? []),
    };
  },
};

/** Without this tfjs would differentiate the saved tensors as constants, or complain about something else. */
export const sageAttentionSecondOrderConfig: tf.GradConfig = {
  kernelName: SageAttentionGrad,
  gradFunc() {
    throw new SageAttentionError({
      code: 'second-order-gradient',
      argument: null,
      message: 'sageAttention: the gradient of its gradient (second order) does not exist.',
      hint: 'Compose attention of tf.matMul and tf.softmax where you need it, as in a gradient penalty.',
    });
  },
};

function runKernel(name: string, inputs: tf.NamedTensorMap, attrs: object): tf.Tensor[] {
  return tf.engine().runKernel(name, inputs, attrs as tf.NamedAttrMap) as tf.Tensor[];
}

/** Registers both, once. */
export function registerSageGradients(): void {
  for (const config of [sageAttentionGradConfig, sageAttentionSecondOrderConfig]) {
    if (tf.getGradient(config.kernelName) === undefined) tf.registerGradient(config);
  }
}
