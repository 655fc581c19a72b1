// The installed package as TypeScript sees it: compiled as an ES module and as CommonJS, then run.
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-backend-cpu';
import {getSageAttentionInfo, sageAttention} from 'tfjs-sage-attention';

async function main(): Promise<void> {
  await tf.setBackend('cpu');
  const q: tf.Tensor3D = tf.ones([2, 5, 8]);
  const o: tf.Tensor = sageAttention(q, q, q, {precision: 'int16', isCausal: true});
  const chained: tf.Tensor = q.sageAttention(q, q);
  if (o.shape.join() !== '2,5,8' || chained.shape.join() !== '2,5,8')
    throw new Error('wrong shape');
  if (getSageAttentionInfo().engines.length === 0) throw new Error('no engine is listed');
}

main().catch((error: unknown) => {
  throw error;
});
