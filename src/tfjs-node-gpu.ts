/** `@tensorflow/tfjs-node-gpu` with `sageAttention` among its exports: `import * as tf from 'tfjs-sage-attention/tfjs-node-gpu'`. */
import './tensorflow/before_tfjs_node_gpu.js';
export * from '@tensorflow/tfjs-node-gpu';
export * from './index.js';
// By name, because augment.ts declares the same export on tfjs itself and two stars would be ambiguous.
export {sageAttention} from './index.js';
