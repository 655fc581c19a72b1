/**
 * @file What every number format says about itself. The formats and their fast rounding functions
 * are in the files beside this one; `../formats.ts` exports them all.
 */

export type NumberFormatName =
  | 'e2m1'
  | 'e4m3'
  | 'ue4m3'
  | 'e5m2'
  | 'e8m0'
  | 'bf16'
  | 'fp16'
  | 'fp16_saturating'
  | 'int4'
  | 'int8'
  | 'int16';

/** A number format of at most 16 bits: its codes, its values and how numbers are rounded to it. */
export interface NumberFormat {
  readonly name: NumberFormatName;
  /** Width of a code. Codes are the integers from 0 to 2^bits - 1, integer formats in two's complement. */
  readonly bits: number;
  /** The code of the value nearest to `x`, ties to even, where `x` is first rounded to float32. */
  readonly encode: (x: number) => number;
  /** The exact value of a code; bits above `bits` are ignored. */
  readonly decode: (code: number) => number;
  /** `decode(encode(x))` without the detour. */
  readonly round: (x: number) => number;
  readonly maxFinite: number;
  /** The smallest positive value; for formats without subnormals, the smallest there is. */
  readonly minSubnormal: number;
}
