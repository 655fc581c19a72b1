/**
 * @file The number formats of the recipes: every code, its value, and rounding to it.
 *
 * All conversions are to nearest, ties to even, and saturate as the hardware's do. Two ways in:
 * a `NumberFormat` describes a format (`E4M3.encode(x)`), and plain functions round inside hot loops
 * (`roundE4m3(x)`). Inputs are float32 values; any other number is rounded to float32 first, except
 * by the integer roundings, which take numbers as they are. csrc/formats has the same functions in
 * C++, bit for bit.
 */

import {E8M0} from './formats/e8m0.js';
import {BF16, FP16, FP16_SATURATING} from './formats/half.js';
import {INT16, INT4, INT8} from './formats/integers.js';
import {E2M1, E4M3, E5M2, UE4M3} from './formats/minifloat.js';
import type {NumberFormat, NumberFormatName} from './formats/number_format.js';

export * from './formats/e8m0.js';
export * from './formats/half.js';
export * from './formats/integers.js';
export * from './formats/minifloat.js';
export type {NumberFormat, NumberFormatName} from './formats/number_format.js';

/** Every format by its name. */
export const NUMBER_FORMATS: Readonly<Record<NumberFormatName, NumberFormat>> = {
  e2m1: E2M1,
  e4m3: E4M3,
  ue4m3: UE4M3,
  e5m2: E5M2,
  e8m0: E8M0,
  bf16: BF16,
  fp16: FP16,
  fp16_saturating: FP16_SATURATING,
  int4: INT4,
  int8: INT8,
  int16: INT16,
};
