/**
 * Which engine holds a key/value cache, and why. Pure, as the table of `engine_table.ts` is: it is asked with facts, and
 * the tests ask it row by row.
 */
import {sageConfig} from '../runtime/config.js';
import {loadAddon} from '../runtime/load_addon.js';
import {cudaEngine} from './cuda.js';
import {cudaCacheRefusal} from './cuda_kv_cache.js';
import type {EngineName} from './engine.js';
import type {EngineFacts} from './engine_table.js';
import type {CacheShape, CacheStore} from './kv_cache.js';
import {nativeEngine} from './native.js';
import {TENSORFLOW_BACKEND, tensorflowOp} from './tensorflow_op.js';

/** What the machine and the configuration say. */
export interface CacheFacts extends Pick<EngineFacts, 'native'> {
  /** Null where nobody asks. `refusal`: why the device holds no caches of this shape, null when it does. */
  readonly cuda: {
    readonly available: boolean;
    readonly reason: string;
    readonly refusal: string | null;
  } | null;
  /** Whether the backend's tensors lie in a GPU's memory, where the engine `cuda` works in place. */
  readonly onGpu: boolean;
  /** Engine set by `configureSageAttention`, or `'auto'`. */
  readonly required: EngineName | 'auto';
}

/** The answer. */
export interface CacheChoice {
  readonly engine: CacheStore['engine'];
  readonly reason: string;
}

/** The first engine that serves, from the fastest; null where the one that is required is not there. */
export function findCacheEngine({native, cuda, onGpu, required}: CacheFacts): CacheChoice | null {
  const asked = required === 'auto' ? '' : ', as configured';
  const wantsGpu = required === 'cuda' || (required === 'auto' && onGpu);
  const whyNot = !wantsGpu
    ? null
    : cuda === null || !cuda.available
      ? (cuda?.reason ?? 'nobody looked for one')
      : cuda.refusal;
  if (wantsGpu && whyNot === null) {
    return {engine: 'cuda', reason: `in the memory of ${cuda?.reason}${asked}`};
  }
  const instead = whyNot === null ? '' : `; not on a GPU: ${whyNot}`;
  // Both compute every precision: what TypeScript is for is a machine without the addon.
  if (native.engine !== null && required !== 'typescript' && required !== 'composition') {
    return {
      engine: 'native',
      reason: `${native.reason}${instead}${required === 'native' ? asked : ''}`,
    };
  }
  if (required === 'native') return null;
  const missing =
    native.engine === null ? `, because there is no native engine: ${native.reason}` : '';
  return {engine: 'typescript', reason: `portable TypeScript${missing}${instead}`};
}

/** `findCacheEngine` under the present configuration, for tensors of `backend`. */
export function chooseCacheEngine(backend: string, shape: CacheShape): CacheChoice | null {
  const {engine: required} = sageConfig();
  const {addon} = loadAddon();
  const onGpu = backend === TENSORFLOW_BACKEND && tensorflowOp().device === 'GPU';
  const asks = required === 'cuda' || (required === 'auto' && onGpu);
  const cuda = asks ? cudaEngine() : null;
  return findCacheEngine({
    native: nativeEngine(),
    cuda:
      cuda === null
        ? null
        : {
            available: cuda.engine !== null,
            reason: cuda.reason,
            refusal: addon === null || cuda.engine === null ? null : cudaCacheRefusal(addon, shape),
          },
    onGpu,
    required,
  });
}
