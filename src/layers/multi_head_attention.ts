/** Keras' MultiHeadAttention on sageAttention. */
import type {serialization} from '@tensorflow/tfjs-core';
import {checkPositiveInteger} from './check_sizes.js';
import {ProjectedAttention, type ProjectedAttentionArgs} from './projected_attention.js';

export interface MultiHeadAttentionArgs extends ProjectedAttentionArgs {
  numHeads: number;
  /** Width of a head of query and key. */
  keyDim: number;
  /** Width of a head of value. Default: keyDim. */
  valueDim?: number | null | undefined;
  /** Shape of the output after the tokens. Default: the width of the query. */
  outputShape?: number | readonly number[] | null | undefined;
  /** Axes that are attended over. Default: all but batch and width. */
  attentionAxes?: number | readonly number[] | null | undefined;
}

/**
 * Attention of several heads, by Vaswani et al., with Keras' arguments, weights and masks.
 *
 * ```js
 * const layer = multiHeadAttention({numHeads: 8, keyDim: 64});
 * const y = layer.apply([x, x], {useCausalMask: true});   // x: [batch, tokens, width]
 * ```
 *
 * Inputs: query [B,T,width], value [B,S,width], key [B,S,width], see `AttentionLayer.apply`. Output [B,T,width of the
 * query] or [B,T,...outputShape]; scores [B,H,T,S].
 */
export class MultiHeadAttention extends ProjectedAttention {
  /** @nocollapse */
  static className = 'MultiHeadAttention';
  private readonly config: serialization.ConfigDict;

  constructor(args: MultiHeadAttentionArgs) {
    const layer = args.name ?? MultiHeadAttention.className;
    const numHeads = checkPositiveInteger(layer, 'numHeads', args.numHeads);
    const keyDim = checkPositiveInteger(layer, 'keyDim', args.keyDim);
    const valueDim =
      args.valueDim == null ? keyDim : checkPositiveInteger(layer, 'valueDim', args.valueDim);
    const outputShape = args.outputShape == null ? null : [args.outputShape].flat();
    for (const size of outputShape ?? []) checkPositiveInteger(layer, 'outputShape', size);
    const axes = args.attentionAxes ?? null;
    super(args, {
      queryHeads: numHeads,
      kvHeads: numHeads,
      keyDim,
      valueDim,
      outputShape: outputShape as number[] | null,
      axes,
    });
    this.config = {
      numHeads,
      keyDim,
      valueDim,
      outputShape: outputShape as number[] | null,
      attentionAxes: typeof axes === 'number' ? [axes] : axes === null ? null : [...axes],
    };
  }

  override takesMasksOff(): boolean {
    return this.keras === 3;
  }

  override getConfig(): serialization.ConfigDict {
    return {...super.getConfig(), ...this.config};
  }
}
