/** Keras' GroupQueryAttention on sageAttention. */
import type {serialization} from '@tensorflow/tfjs-core';
import {SageAttentionError} from '../runtime/errors.js';
import {checkPositiveInteger} from './check_sizes.js';
import {ProjectedAttention, type ProjectedAttentionArgs} from './projected_attention.js';

export interface GroupQueryAttentionArgs extends ProjectedAttentionArgs {
  /** Width of a head. */
  headDim: number;
  numQueryHeads: number;
  /** A divisor of numQueryHeads; each serves numQueryHeads / numKeyValueHeads neighbouring query heads. */
  numKeyValueHeads: number;
}

/**
 * Attention whose key and value heads serve several query heads each, by Ainslie et al., with Keras' arguments, weights
 * and masks. Heads of key and value are never repeated in memory.
 *
 * ```js
 * const layer = groupQueryAttention({headDim: 64, numQueryHeads: 8, numKeyValueHeads: 2});
 * const y = layer.apply([x, x], {useCausalMask: true});   // x: [batch, tokens, width]
 * ```
 *
 * Inputs as of MultiHeadAttention, rank 3 only. Output [B,T,width of the query]; scores [B,numQueryHeads,T,S].
 */
export class GroupQueryAttention extends ProjectedAttention {
  /** @nocollapse */
  static className = 'GroupQueryAttention';
  private readonly config: serialization.ConfigDict;

  constructor(args: GroupQueryAttentionArgs) {
    const layer = args.name ?? GroupQueryAttention.className;
    const headDim = checkPositiveInteger(layer, 'headDim', args.headDim);
    const numQueryHeads = checkPositiveInteger(layer, 'numQueryHeads', args.numQueryHeads);
    const numKeyValueHeads = checkPositiveInteger(layer, 'numKeyValueHeads', args.numKeyValueHeads);
    if (numQueryHeads % numKeyValueHeads !== 0) {
      throw new SageAttentionError({
        code: 'invalid-option',
        argument: 'numKeyValueHeads',
        message: `${layer}: \`numKeyValueHeads\` is ${numKeyValueHeads}, expected a divisor of numQueryHeads, ${numQueryHeads}.`,
        hint: 'Each key and value head serves the same number of query heads.',
      });
    }
    super(args, {
      queryHeads: numQueryHeads,
      kvHeads: numKeyValueHeads,
      keyDim: headDim,
      valueDim: headDim,
      outputShape: null,
      axes: [1],
    });
    this.config = {headDim, numQueryHeads, numKeyValueHeads};
  }

  override getConfig(): serialization.ConfigDict {
    return {...super.getConfig(), ...this.config};
  }
}
