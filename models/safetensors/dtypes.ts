// The number formats of safetensors: their sizes, and exact conversion to the arrays tfjs takes.
// Data is little-endian, and so is every platform that tfjs runs on.

/** Bytes of one element, by the name that the file header uses. */
export const BYTES_PER_ELEMENT: ReadonlyMap<string, number> = new Map([
  ['BOOL', 1],
  ['U8', 1],
  ['I8', 1],
  ['F8_E5M2', 1],
  ['F8_E4M3', 1],
  ['F8_E8M0', 1],
  ['I16', 2],
  ['U16', 2],
  ['F16', 2],
  ['BF16', 2],
  ['I32', 4],
  ['U32', 4],
  ['F32', 4],
  ['I64', 8],
  ['U64', 8],
  ['F64', 8],
  ['C64', 8],
]);

/** Formats that `toFloat32` converts without loss. */
export const FLOAT32_DTYPES: readonly string[] = ['F32', 'F16', 'BF16'];

/** Formats that `toInt32` converts; I64, U64 and U32 only while their values fit. */
export const INT32_DTYPES: readonly string[] = [
  'I32',
  'I64',
  'I16',
  'I8',
  'U64',
  'U32',
  'U16',
  'U8',
  'BOOL',
];

/** A copy with a buffer of its own. Not `slice`, which on Node's Buffer is a view of a shared pool. */
export function copyBytes(bytes: Uint8Array): Uint8Array<ArrayBuffer> {
  const copy = new Uint8Array(bytes.length);
  copy.set(bytes);
  return copy;
}

/** The same bytes at an address that typed arrays accept: a safetensors header may have any length. */
function aligned(bytes: Uint8Array, size: number): Uint8Array {
  return bytes.byteOffset % size === 0 ? bytes : copyBytes(bytes);
}

function viewOf16(bytes: Uint8Array): Uint16Array {
  const {buffer, byteOffset, byteLength} = aligned(bytes, 2);
  return new Uint16Array(buffer, byteOffset, byteLength / 2);
}

let halfTable: Float32Array | undefined;

/** All 65,536 fp16 codes as float32: decoding a weight is then one load. Built on first use. */
function float16Table(): Float32Array {
  if (halfTable !== undefined) return halfTable;
  const bits = new Uint32Array(65536);
  for (let code = 0; code < 65536; code++) {
    const sign = (code & 0x8000) << 16;
    const exponent = (code >> 10) & 31;
    const fraction = code & 1023;
    // 112 = 127 - 15, the distance of the two exponent biases.
    if (exponent === 31) bits[code] = sign | 0x7f800000 | (fraction << 13);
    else if (exponent > 0) bits[code] = sign | ((exponent + 112) << 23) | (fraction << 13);
    else if (fraction === 0) bits[code] = sign;
    else {
      // Subnormal: value = fraction * 2^-24, a normal float32 once the leading one is found.
      const shift = Math.clz32(fraction) - 21;
      bits[code] = sign | ((113 - shift) << 23) | (((fraction << shift) & 1023) << 13);
    }
  }
  halfTable = new Float32Array(bits.buffer);
  return halfTable;
}

/**
 * Values as float32, each exactly the stored one.
 *
 * @param bytes the tensor's bytes; not changed and not kept
 * @param dtype 'F32', 'F16' or 'BF16'
 * @returns a new array, or undefined for another dtype
 */
export function toFloat32(bytes: Uint8Array, dtype: string): Float32Array | undefined {
  if (dtype === 'F32') return new Float32Array(copyBytes(bytes).buffer);
  if (dtype === 'F16') {
    const table = float16Table();
    // Through the bits, as a float load may quieten a signalling NaN.
    const tableBits = new Uint32Array(table.buffer);
    const codes = viewOf16(bytes);
    const bits = new Uint32Array(codes.length);
    for (let i = 0; i < codes.length; i++) bits[i] = tableBits[codes[i] as number] as number;
    return new Float32Array(bits.buffer);
  }
  if (dtype === 'BF16') {
    const codes = viewOf16(bytes);
    const bits = new Uint32Array(codes.length);
    for (let i = 0; i < codes.length; i++) bits[i] = (codes[i] as number) << 16;
    return new Float32Array(bits.buffer);
  }
  return undefined;
}

/** The first integer that int32 cannot hold: where it is and what it is. */
export interface OutOfRange {
  readonly index: number;
  readonly value: string;
}

/**
 * Integers (and booleans, as 0 and 1) as int32.
 *
 * @param bytes the tensor's bytes; not changed and not kept
 * @param dtype one of `INT32_DTYPES`
 * @returns a new array; the first value that int32 cannot hold; or undefined for another dtype
 */
export function toInt32(bytes: Uint8Array, dtype: string): Int32Array | OutOfRange | undefined {
  const size = BYTES_PER_ELEMENT.get(dtype);
  if (size === undefined || !INT32_DTYPES.includes(dtype)) return undefined;
  const {buffer, byteOffset, byteLength} = aligned(bytes, size);
  const count = byteLength / size;
  switch (dtype) {
    case 'I32':
      return new Int32Array(buffer, byteOffset, count).slice();
    case 'I16':
      return Int32Array.from(new Int16Array(buffer, byteOffset, count));
    case 'I8':
      return Int32Array.from(new Int8Array(buffer, byteOffset, count));
    case 'U16':
      return Int32Array.from(new Uint16Array(buffer, byteOffset, count));
    case 'U8':
      return Int32Array.from(new Uint8Array(buffer, byteOffset, count));
    case 'BOOL':
      return Int32Array.from(new Uint8Array(buffer, byteOffset, count), (value) =>
        value === 0 ? 0 : 1,
      );
    case 'U32':
      return narrow(new Uint32Array(buffer, byteOffset, count));
    case 'U64':
      return narrow(new BigUint64Array(buffer, byteOffset, count));
    default:
      return narrow(new BigInt64Array(buffer, byteOffset, count));
  }
}

function narrow(values: Uint32Array | BigInt64Array | BigUint64Array): Int32Array | OutOfRange {
  const result = new Int32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number | bigint;
    if (value > 0x7fffffff || value < -0x80000000) return {index: i, value: String(value)};
    result[i] = Number(value);
  }
  return result;
}
