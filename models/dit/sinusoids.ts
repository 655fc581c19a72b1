// Sines and cosines that tell a diffusion transformer where a patch is and how noisy the image.

/** Longest wave of both, in steps (Vaswani et al. 2017). */
const MAX_PERIOD = 10000;

/** Channels of a timestep before its MLP. */
export const TIMESTEP_CHANNELS = 256;

/**
 * Position embedding of a square grid of patches, [size * size, width]: the first half of the channels holds the column,
 * the second the row, each as sines and then cosines.
 *
 * @param size patches on a side
 * @param width a multiple of 4
 * @param scale by which positions are divided
 */
export function gridPositions(size: number, width: number, scale: number): Float32Array {
  const {cos, sin} = Math;
  const quarter = width / 4;
  const values = new Float32Array(size * size * width);
  const write = (begin: number, position: number): void => {
    for (let i = 0; i < quarter; i++) {
      const angle = position / scale / MAX_PERIOD ** (i / quarter);
      values[begin + i] = sin(angle);
      values[begin + quarter + i] = cos(angle);
    }
  };
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const begin = (row * size + column) * width;
      write(begin, column);
      write(begin + 2 * quarter, row);
    }
  }
  return values;
}

/**
 * Embedding of timesteps, [steps.length, 256]: cosines, then sines.
 *
 * @param shift 1 in DiT, whose longest wave is then the maximum; 0 in PixArt
 */
export function timestepWaves(steps: readonly number[], shift: 0 | 1): Float32Array {
  const {cos, sin} = Math;
  const half = TIMESTEP_CHANNELS / 2;
  const values = new Float32Array(steps.length * TIMESTEP_CHANNELS);
  steps.forEach((step, row) => {
    for (let i = 0; i < half; i++) {
      const angle = step * MAX_PERIOD ** (-i / (half - shift));
      values[row * TIMESTEP_CHANNELS + i] = cos(angle);
      values[row * TIMESTEP_CHANNELS + half + i] = sin(angle);
    }
  });
  return values;
}
