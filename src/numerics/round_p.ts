/**
 * The rounding of P (docs/numerics.md 5): probabilities in [0, 1], relative to the row's maximum, to the values of P's
 * format. SageAttention2 3.3 for the static scale 448 of e4m3; SageAttention3 3.2 for the two levels of nvfp4.
 */
import {roundBf16, roundE2m1, roundE4m3, roundFp16, roundHalfEven} from './formats.js';
import {NVFP4_GROUP} from './quantize_nvfp4.js';
import type {Recipe} from './recipes.js';

const f32 = Math.fround;
/** Largest e2m1 code: a group's largest p becomes it. */
const E2M1_TOP = 6;

/**
 * Rounds `count` probabilities of one row of keys in place; the row starts at a multiple of 16 keys.
 * The results mean P / pTop: integers for int16 and int8, format values otherwise, unchanged for float32.
 * Probabilities are taken as float32 numbers; callers that hold float64 round them first.
 */
export function roundP(recipe: Recipe, p: Float32Array | Float64Array, count: number): void {
  const top = recipe.pTop;
  switch (recipe.pv) {
    case 'float32':
      return;
    case 'bf16':
      for (let j = 0; j < count; j++) p[j] = roundBf16(p[j]!);
      return;
    case 'fp16':
      for (let j = 0; j < count; j++) p[j] = roundFp16(p[j]!);
      return;
    case 'int16':
    case 'int8':
      for (let j = 0; j < count; j++) p[j] = roundHalfEven(f32(p[j]! * top));
      return;
    case 'e4m3':
      for (let j = 0; j < count; j++) p[j] = roundE4m3(f32(p[j]! * top));
      return;
    case 'nvfp4':
      for (let first = 0; first < count; first += NVFP4_GROUP) {
        roundGroup(p, first, Math.min(count, first + NVFP4_GROUP), top);
      }
  }
}

/** One group of nvfp4. Divides by the scale before its rounding: the rounding then moves all of the group alike. */
function roundGroup(p: Float32Array | Float64Array, begin: number, end: number, top: number): void {
  let largest = 0;
  for (let j = begin; j < end; j++) {
    const x = f32(p[j]! * top);
    if (x > largest) largest = x;
  }
  const g = f32(largest / E2M1_TOP);
  const scale = roundE4m3(g);
  for (let j = begin; j < end; j++) {
    p[j] = g === 0 ? 0 : roundE2m1(f32(f32(p[j]! * top) / g)) * scale;
  }
}
