/** What `auto` means on a GPU: by device, by what the kernels compute, and by the call. */
import {autoOnGpu, gpuPreferences} from '../../src/engines/gpu_auto';

const deviceOf = (computeCapability: number, architectures = 'sm_80 sm_89 sm_90 sm_120') =>
  gpuPreferences({computeCapability, architectures})[0];

test.each([
  [80, 'int8_fp16'],
  [86, 'int8_fp16'],
  [89, 'int8_fp8'],
  [90, 'int8_fp8'],
  [100, 'int8_fp8'],
  [120, 'fp4'],
  [121, 'fp4'],
  [130, 'int8_fp8'],
])('sm_%i prefers %s', (capability, expected) => {
  expect(deviceOf(capability)).toBe(expected);
});

test('FP4 that a build would emulate is not taken for the real one', () => {
  expect(deviceOf(120, 'sm_80 sm_90')).toBe('int8_fp8');
});

describe('a call', () => {
  const preferences = gpuPreferences({computeCapability: 90, architectures: 'sm_90'});
  const sizes = {kvLen: 4096, qkDim: 64, vDim: 64};
  const all = () => true;

  test('of many keys is quantised, and so is one of unknown size', () => {
    expect(autoOnGpu(preferences, all, sizes)).toBe('int8_fp8');
    expect(autoOnGpu(preferences, all)).toBe('int8_fp8');
  });

  test('of few keys is exact', () => {
    expect(autoOnGpu(preferences, all, {...sizes, kvLen: 511})).toBe('exact');
    expect(autoOnGpu(preferences, all, {...sizes, kvLen: 512})).toBe('int8_fp8');
  });

  test('takes the next recipe, at last exact, where head_dim has no kernels', () => {
    const computes = (precision: string, qkDim: number, vDim: number) =>
      Math.max(qkDim, vDim) <= (precision === 'int8_fp8' ? 128 : 256);
    expect(autoOnGpu(preferences, computes, {...sizes, vDim: 192})).toBe('int8_fp16');
    expect(autoOnGpu(preferences, computes, {...sizes, qkDim: 512})).toBe('exact');
  });
});
