/**
 * The one inner loop of the engine: C += A · Bᵀ on small float64 matrices whose rows are contiguous.
 * Scores are Q · Kᵀ; outputs and gradients use the same loop on operands stored with channels as rows.
 *
 * Blocks of 4 rows by 2 columns keep 8 sums and 6 operands in the 16 floating-point registers of x86-64.
 * float64 because a JavaScript number is one: float32 would add a conversion to every load, and sums of integer codes are exact.
 */

/** Rows inside a flat array: element (row, column) is values[offset + row · stride + column]. */
export interface Panel {
  readonly values: Float64Array;
  readonly offset: number;
  readonly stride: number;
}

/** c[i, j] += sum over d < length of a[i, d] · b[j, d], for i < aRows and j < bRows. */
export function addProduct(
  a: Panel,
  aRows: number,
  b: Panel,
  bRows: number,
  length: number,
  c: Panel,
): void {
  const blockedRows = aRows - (aRows % 4);
  addBlocksOf4(a, blockedRows, b, bRows, length, c);
  for (let i = blockedRows; i < aRows; i++) addRow(a, i, b, bRows, length, c);
}

/** The part of `addProduct` whose rows come in fours. */
function addBlocksOf4(
  a: Panel,
  aRows: number,
  b: Panel,
  bRows: number,
  length: number,
  c: Panel,
): void {
  const aValues = a.values;
  const bValues = b.values;
  const cValues = c.values;
  const pairedColumns = bRows - (bRows % 2);
  for (let i = 0; i < aRows; i += 4) {
    const a0 = a.offset + i * a.stride;
    const a1 = a0 + a.stride;
    const a2 = a1 + a.stride;
    const a3 = a2 + a.stride;
    const c0 = c.offset + i * c.stride;
    const c1 = c0 + c.stride;
    const c2 = c1 + c.stride;
    const c3 = c2 + c.stride;
    for (let j = 0; j < pairedColumns; j += 2) {
      const b0 = b.offset + j * b.stride;
      const b1 = b0 + b.stride;
      let s00 = 0;
      let s01 = 0;
      let s10 = 0;
      let s11 = 0;
      let s20 = 0;
      let s21 = 0;
      let s30 = 0;
      let s31 = 0;
      for (let d = 0; d < length; d++) {
        const x = bValues[b0 + d]!;
        const y = bValues[b1 + d]!;
        const p = aValues[a0 + d]!;
        const q = aValues[a1 + d]!;
        const r = aValues[a2 + d]!;
        const s = aValues[a3 + d]!;
        s00 += p * x;
        s01 += p * y;
        s10 += q * x;
        s11 += q * y;
        s20 += r * x;
        s21 += r * y;
        s30 += s * x;
        s31 += s * y;
      }
      cValues[c0 + j]! += s00;
      cValues[c0 + j + 1]! += s01;
      cValues[c1 + j]! += s10;
      cValues[c1 + j + 1]! += s11;
      cValues[c2 + j]! += s20;
      cValues[c2 + j + 1]! += s21;
      cValues[c3 + j]! += s30;
      cValues[c3 + j + 1]! += s31;
    }
    if (pairedColumns === bRows) continue;
    const b0 = b.offset + pairedColumns * b.stride;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    for (let d = 0; d < length; d++) {
      const x = bValues[b0 + d]!;
      s0 += aValues[a0 + d]! * x;
      s1 += aValues[a1 + d]! * x;
      s2 += aValues[a2 + d]! * x;
      s3 += aValues[a3 + d]! * x;
    }
    cValues[c0 + pairedColumns]! += s0;
    cValues[c1 + pairedColumns]! += s1;
    cValues[c2 + pairedColumns]! += s2;
    cValues[c3 + pairedColumns]! += s3;
  }
}

/** One row of A: four columns at a time, so that four sums hide the latency of an addition. */
function addRow(a: Panel, i: number, b: Panel, bRows: number, length: number, c: Panel): void {
  const aValues = a.values;
  const bValues = b.values;
  const cValues = c.values;
  const a0 = a.offset + i * a.stride;
  const c0 = c.offset + i * c.stride;
  const blockedColumns = bRows - (bRows % 4);
  for (let j = 0; j < blockedColumns; j += 4) {
    const b0 = b.offset + j * b.stride;
    const b1 = b0 + b.stride;
    const b2 = b1 + b.stride;
    const b3 = b2 + b.stride;
    let s0 = 0;
    let s1 = 0;
    let s2 = 0;
    let s3 = 0;
    for (let d = 0; d < length; d++) {
      const x = aValues[a0 + d]!;
      s0 += x * bValues[b0 + d]!;
      s1 += x * bValues[b1 + d]!;
      s2 += x * bValues[b2 + d]!;
      s3 += x * bValues[b3 + d]!;
    }
    cValues[c0 + j]! += s0;
    cValues[c0 + j + 1]! += s1;
    cValues[c0 + j + 2]! += s2;
    cValues[c0 + j + 3]! += s3;
  }
  for (let j = blockedColumns; j < bRows; j++) {
    const b0 = b.offset + j * b.stride;
    let sum = 0;
    for (let d = 0; d < length; d++) sum += aValues[a0 + d]! * bValues[b0 + d]!;
    cValues[c0 + j]! += sum;
  }
}
