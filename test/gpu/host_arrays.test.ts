/**
 * The engine `cuda` on arrays of this process: the whole case table through the op on backend `cpu`, forward and
 * gradients, and every recipe that the device computes. Without a GPU the tests are skipped and their title tells why.
 */
import * as tf from '@tensorflow/tfjs-core';
import {compareArrays} from '../../src/accuracy/metrics';
import {chooseEngine} from '../../src/engines/choose_engine';
import {cudaCosts, cudaEngine, lastCudaRefusal} from '../../src/engines/cuda';
import {
  configureSageAttention,
  releaseCudaMemory,
  sageAttention,
  sageAttentionAsync,
} from '../../src/index';
import {PRECISIONS, isRefusal, resolveRecipe, type Precision} from '../../src/numerics/recipes';
import {encodeProblem, PROBLEM_WORDS, type AttentionProblem} from '../../src/problem';
import {loadAddon} from '../../src/runtime/load_addon';
import {casesTagged, problemOf, relativeL1Bound, type AttentionCase} from '../cases';
import {useBackend} from '../kernels/backends';
import {checkForward, checkGradients} from '../kernels/check_cases';
import {callOf, exactAnswer} from '../ops/case_calls';

const {engine, reason} = cudaEngine();
const {addon} = loadAddon();

if (engine === null || addon === null) {
  test.skip(`no GPU here: ${reason}`, () => undefined);
} else {
  beforeAll(async () => {
    await useBackend('cpu');
    configureSageAttention({engine: 'cuda'});
    expect(chooseEngine('cpu', 'exact')).toMatchObject({engine: 'cuda', onGpu: false});
  });
  afterAll(() => {
    configureSageAttention({engine: 'auto'});
    releaseCudaMemory();
    expect(addon.cudaState().deviceBytes).toBe(0);
  });

  describe('exact', () => {
    checkForward(Infinity);
    checkGradients(Infinity);

    test('all of it was computed on the GPU', () => {
      expect(lastCudaRefusal()).toBeNull();
    });
  });

  const computed = PRECISIONS.filter((name) => name !== 'exact' && engine.supports(name));

  describe.each(computed)('%s', (precision) => {
    const cases = [...casesTagged('fast'), ...casesTagged('accuracy')];

    test('as near to float64 as the native engine, or within the published bound', async () => {
      const failures: string[] = [];
      let onGpu = 0;
      for (const c of cases) {
        if (whyNot(c, precision) !== null) continue;
        onGpu += 1;
        const {error, nativeError} = await errorsOf(c, precision);
        const allowed = Math.max(relativeL1Bound(c, precision), 1.25 * nativeError);
        if (!(error <= allowed)) failures.push(`${c.name}: ${error}, allowed ${allowed}`);
      }
      expect(failures).toEqual([]);
      expect(onGpu).toBeGreaterThan(cases.length / 2);
    }, 600_000);
  });

  test('the cost model is finite and sends a large call to the GPU or says why not', () => {
    const costs = cudaCosts();
    expect(costs).not.toBeNull();
    for (const x of [
      costs!.launchMs,
      costs!.copyMsPerByte,
      costs!.cudaRate('exact'),
      costs!.nativeRate('exact'),
    ]) {
      expect(x).toBeGreaterThan(0);
      expect(Number.isFinite(x)).toBe(true);
    }
  });

  test('an asynchronous call gives the bits of a synchronous one', async () => {
    const x = tf.randomNormal([1, 8, 1000, 64], 0, 1, 'float32', 1) as tf.Tensor4D;
    const o = await sageAttentionAsync(x, x, x, {precision: 'exact'});
    expect(await o.data()).toEqual(await sageAttention(x, x, x, {precision: 'exact'}).data());
    const reason = new Error('enough');
    const signal = AbortSignal.abort(reason);
    await expect(sageAttentionAsync(x, x, x, {signal})).rejects.toBe(reason);
  });

  test('a limit that is too small leads to the native engine, and is told', () => {
    releaseCudaMemory();
    const before = configureSageAttention({cudaMemory: 1});
    const x = tf.randomNormal([1, 1, 8192, 128], 0, 1, 'float32', 2) as tf.Tensor4D;
    const o = sageAttention(x, x, x, {precision: 'exact'}).dataSync();
    expect(o.every(Number.isFinite)).toBe(true);
    expect(lastCudaRefusal()).toContain('limit of device memory');
    configureSageAttention(before);
  });
}

function problemIn(c: AttentionCase, precision: Precision): AttentionProblem {
  const recipe = resolveRecipe(precision, {});
  if (isRefusal(recipe)) throw new Error(`no recipe ${precision}`);
  return problemOf(c, recipe);
}

/** Why the kernels do not compute a case; null when they do. */
function whyNot(c: AttentionCase, precision: Precision): string | null {
  const {batch, heads, qLen, kvLen} = c;
  if (batch * heads * qLen * kvLen === 0) return 'there is nothing to compute';
  const words = encodeProblem(problemIn(c, precision), new Float64Array(PROBLEM_WORDS));
  return addon === null ? 'no addon' : addon.cudaHostSupports(words);
}

/** Relative L1 of o from float64, on the GPU and on the native engine. */
async function errorsOf(c: AttentionCase, precision: Precision) {
  const expected = exactAnswer(c).o;
  const {q, k, v, options} = callOf(c);
  const attend = async (name: 'cuda' | 'native') => {
    configureSageAttention({engine: name});
    const o = sageAttention(q, k, v, {...options, precision, returnLse: false});
    const {relativeL1} = compareArrays(await o.data(), expected);
    o.dispose();
    return relativeL1;
  };
  const nativeError = await attend('native');
  const error = await attend('cuda');
  tf.dispose([q, k, v, options.mask as tf.Tensor]);
  return {error, nativeError};
}
