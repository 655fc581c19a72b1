/**
 * SageKvCache on backend `tensorflow` with TensorFlow on a GPU: the checks of every engine by ops in TensorFlow's stream,
 * codes of the CPU, and inputs that TensorFlow frees and overwrites right after the call. Elsewhere the tests are skipped
 * and their title tells why. TF_FORCE_GPU_ALLOW_GROWTH leaves memory for the caches.
 */
process.env['TF_FORCE_GPU_ALLOW_GROWTH'] ??= 'true';
import * as tf from '@tensorflow/tfjs-core';
import {lastCudaRefusal} from '../../src/engines/cuda';
import {tensorflowOp} from '../../src/engines/tensorflow_op';
import {SageKvCache} from '../../src/index';
import {loadAddon} from '../../src/runtime/load_addon';
import {
  appendTokens,
  attend,
  CACHE_CASES,
  checkCache,
  makeCache,
  makeCacheInputs,
} from '../cache/kv_cache_checks';
import {loadTensorflowBackend} from '../tensorflow/tensorflow_backend';

loadTensorflowBackend();
tf.backend();
const {device, reason} = tensorflowOp();
const {addon} = loadAddon();

if (device !== 'GPU' || addon === null) {
  test.skip(`TensorFlow has no GPU here: ${reason}`, () => undefined);
} else {
  beforeAll(() => tf.setBackend('tensorflow'));

  checkCache();

  test('every call is one op on the GPU, in its stream', () => {
    const c = CACHE_CASES[0]!;
    const inputs = makeCacheInputs(c);
    const cache = makeCache(c, 'int8');
    const {calls} = addon.tensorflowTrace();
    appendTokens(cache, c, inputs, 0, c.kvLen);
    attend(cache, c, inputs);
    const trace = addon.tensorflowTrace();
    expect([trace.calls - calls, trace.device]).toEqual([2, 'GPU']);
    expect([cache.engine, lastCudaRefusal()]).toEqual(['cuda', null]);
    cache.dispose();
  });

  test('nothing is read before it is there or after it is gone', () => {
    const sizes = {batch: 1, heads: 8, kvHeads: 8, headDim: 128};
    const weights = tf.randomNormal([4096, 4096], 0, 1 / 64, 'float32', 7) as tf.Tensor2D;
    const start = tf.randomNormal([4096, 4096], 0, 1, 'float32', 8) as tf.Tensor2D;
    const [cache, slow] = [new SageKvCache(sizes), new SageKvCache(sizes)];
    /** The values come out of products that are still under way, or are waited for; then they are overwritten. */
    const step = (of: SageKvCache, n: number, wait: boolean) =>
      tf.tidy(() => {
        const product = tf.matMul(tf.matMul(tf.add(start, n / 16), weights), weights);
        const [k, v, q] = [0, 1, 2].map((part) =>
          tf.reshape(tf.slice(product, [part * 8, 0], [8, 4096]), [1, 8, 32, 128]),
        ) as [tf.Tensor, tf.Tensor, tf.Tensor];
        if (wait) product.dataSync();
        of.append(k, v);
        const o = of.attend(q);
        tf.dispose([product, k, v, q]);
        tf.dispose(Array.from({length: 4}, () => tf.fill([8, 4096], NaN)));
        return o;
      });
    for (let n = 0; n < 40; n++) {
      const [o, wanted] = [step(cache, n, false), step(slow, n, true)];
      expect(o.dataSync()).toEqual(wanted.dataSync());
      tf.dispose([o, wanted]);
    }
    expect(cache.engine).toBe('cuda');
    tf.dispose([weights, start]);
    cache.dispose();
    slow.dispose();
  });
}
