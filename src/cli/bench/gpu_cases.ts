/** Cases of the benchmark on a GPU. */

export const GPU_LENGTHS: readonly number[] = [1024, 2048, 4096, 8192, 16384, 32768];

export interface GpuCase {
  readonly batch: number;
  readonly heads: number;
  readonly headDim: number;
  readonly tokens: number;
  readonly causal: boolean;
}

/** Four sequences up to 8K, one above: as published tables have it. */
export function gpuCases(lengths: readonly number[]): GpuCase[] {
  return [128, 64].flatMap((headDim) =>
    [false, true].flatMap((causal) =>
      lengths.map((tokens) => ({
        batch: tokens <= 8192 ? 4 : 1,
        heads: 32,
        headDim,
        tokens,
        causal,
      })),
    ),
  );
}

export function nameOfGpuCase({batch, heads, headDim, tokens, causal}: GpuCase): string {
  return `b${batch}_h${heads}_d${headDim}_n${tokens}_${causal ? 'causal' : 'full'}`;
}

/** 1e12 operations a second. */
export function topsOf({batch, heads, headDim, tokens, causal}: GpuCase, ms: number): number {
  return (4 * batch * heads * tokens ** 2 * headDim) / (causal ? 2 : 1) / ms / 1e9;
}
