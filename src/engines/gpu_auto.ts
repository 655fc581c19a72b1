/**
 * What `auto` means where tensors lie on a GPU: the recipe whose products the device's tensor cores compute in hardware, as
 * the papers pair them, and `exact` where that recipe has nothing to gain or no kernels.
 */
import type {Precision} from '../numerics/recipes.js';
import type {CudaFacts} from '../runtime/native_addon.js';
import type {CallSizes} from './cuda_costs.js';

/**
 * Keys below which quantising costs more than it saves: `int8_fp8` and `exact` end to end, H200, head_dim 64 and 128
 * (docs/kernels_hopper.md).
 */
const LEAST_KEYS = 512;

/** Recipes for a device, the one to prefer first. Compute capability 90 is sm_90. */
export function gpuPreferences({
  computeCapability,
  architectures,
}: Pick<CudaFacts, 'computeCapability' | 'architectures'>): readonly Precision[] {
  const hasFp4 = computeCapability >= 120 && computeCapability < 130;
  // FP4 that is emulated, because the compiler of the build knew no sm_120, is for accuracy tests.
  if (hasFp4 && architectures.includes('sm_120')) return ['fp4', 'int8_fp8', 'int8_fp16'];
  return computeCapability >= 89 ? ['int8_fp8', 'int8_fp16'] : ['int8_fp16'];
}

/**
 * The recipe of a call; of a long one when `sizes` are not known.
 *
 * @param computes Whether the device has kernels of a recipe for the head_dims of the call.
 */
export function autoOnGpu(
  preferences: readonly Precision[],
  computes: (precision: Precision, qkDim: number, vDim: number) => boolean,
  sizes?: Pick<CallSizes, 'kvLen' | 'qkDim' | 'vDim'>,
): Precision {
  const {kvLen, qkDim, vDim} = sizes ?? {kvLen: Infinity, qkDim: 128, vDim: 128};
  if (kvLen < LEAST_KEYS) return 'exact';
  return preferences.find((precision) => computes(precision, qkDim, vDim)) ?? 'exact';
}
