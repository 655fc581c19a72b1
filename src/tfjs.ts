/** `@tensorflow/tfjs` with `sageAttention` among its exports: `import * as tf from 'tfjs-sage-attention/tfjs'`. */
export * from '@tensorflow/tfjs';
export * from './index.js';
// By name, because augment.ts declares the same export on tfjs itself and two stars would be ambiguous.
export {sageAttention} from './index.js';
