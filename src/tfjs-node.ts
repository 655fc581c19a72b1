/** `@tensorflow/tfjs-node` with `sageAttention` among its exports: `import * as tf from 'tfjs-sage-attention/tfjs-node'`. */
import './tensorflow/before_tfjs_node.js';
export * from '@tensorflow/tfjs-node';
export * from './index.js';
// By name, because augment.ts declares the same export on tfjs itself and two stars would be ambiguous.
export {sageAttention} from './index.js';
