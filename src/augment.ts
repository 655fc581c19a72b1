/**
 * Opt-in types: `import 'tfjs-sage-attention/augment'` declares `tf.sageAttention` on tfjs-core and on every package
 * that re-exports it. True in CommonJS; an ES module namespace cannot be extended, so ESM users import the facade
 * `tfjs-sage-attention/tfjs` or the function itself instead.
 */
import './index.js';
import type {sageAttention as sageAttentionOp} from './ops/sage_attention.js';

declare module '@tensorflow/tfjs-core' {
  /** See `sageAttention` of tfjs-sage-attention. */
  export const sageAttention: typeof sageAttentionOp;
}
