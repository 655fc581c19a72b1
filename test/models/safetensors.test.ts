// The safetensors reader: every code of the short formats, shards, and files that are damaged or hostile.

import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {SafetensorsError} from '../../models/safetensors/errors.js';
import {
  openSafetensorsDirectory,
  openSafetensorsFile,
} from '../../models/safetensors/load_from_directory.js';
import {SafetensorsFile} from '../../models/safetensors/safetensors.js';
import {parseShardIndex, ShardedSafetensors} from '../../models/safetensors/sharded.js';
import {encode, fileOf} from './safetensors_encode.js';

/** The error that `action` throws, checked to be ours. */
function errorOf(action: () => unknown): SafetensorsError {
  try {
    action();
  } catch (error) {
    expect(error).toBeInstanceOf(SafetensorsError);
    return error as SafetensorsError;
  }
  throw new Error('nothing was thrown');
}

/** Value of a binary format from its fields, by definition: an oracle that shares no code with the reader. */
function valueOf(code: number, exponentBits: number, fractionBits: number): number {
  const sign = code >> (exponentBits + fractionBits) ? -1 : 1;
  const exponent = (code >> fractionBits) & (2 ** exponentBits - 1);
  const fraction = (code & (2 ** fractionBits - 1)) / 2 ** fractionBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === 2 ** exponentBits - 1) return fraction === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * fraction * 2 ** (1 - bias);
  return sign * (1 + fraction) * 2 ** (exponent - bias);
}

describe('formats', () => {
  const codes = Uint16Array.from({length: 65536}, (_, i) => i);

  test.each([
    ['F16', 5, 10, 0],
    ['F16', 5, 10, 1],
    ['BF16', 8, 7, 0],
    ['BF16', 8, 7, 1],
  ])('%s: all 65,536 codes, exponent %i fraction %i bits, padding %i', (dtype, e, f, padding) => {
    const bytes = encode({x: {dtype, shape: [256, 256], data: codes}}, padding);
    const values = new SafetensorsFile(bytes).float32('x');
    let wrong = 0;
    for (let code = 0; code < 65536; code++) {
      if (!Object.is(values[code], valueOf(code, e, f))) wrong++;
    }
    expect(values.length).toBe(65536);
    expect(wrong).toBe(0);
  });

  test.each([0, 1, 2, 3])('F32 keeps every bit, padding %i', (padding) => {
    const bits = Uint32Array.of(0, 0x80000000, 1, 0x7f7fffff, 0x3f800001, 0xff800000, 0x7fc00000);
    const file = new SafetensorsFile(encode({x: {dtype: 'F32', shape: [7], data: bits}}, padding));
    const values = file.float32('x');
    expect(Array.from(new Uint32Array(values.buffer))).toEqual(Array.from(bits));
  });

  test.each([0, 1])('integers and booleans become int32, padding %i', (padding) => {
    const file = new SafetensorsFile(
      encode(
        {
          i64: {dtype: 'I64', shape: [2], data: BigInt64Array.of(-(2n ** 31n), 2n ** 31n - 1n)},
          u64: {dtype: 'U64', shape: [1], data: BigUint64Array.of(7n)},
          i32: {dtype: 'I32', shape: [2], data: Int32Array.of(-5, 5)},
          u32: {dtype: 'U32', shape: [1], data: Uint32Array.of(2147483647)},
          i16: {dtype: 'I16', shape: [1], data: Int16Array.of(-300)},
          u16: {dtype: 'U16', shape: [1], data: Uint16Array.of(65535)},
          i8: {dtype: 'I8', shape: [1], data: Int8Array.of(-128)},
          u8: {dtype: 'U8', shape: [1], data: Uint8Array.of(255)},
          bool: {dtype: 'BOOL', shape: [3], data: Uint8Array.of(0, 1, 2)},
        },
        padding,
      ),
    );
    const read = Object.fromEntries(file.names().map((name) => [name, [...file.int32(name)]]));
    expect(read).toEqual({
      i64: [-2147483648, 2147483647],
      u64: [7],
      i32: [-5, 5],
      u32: [2147483647],
      i16: [-300],
      u16: [65535],
      i8: [-128],
      u8: [255],
      bool: [0, 1, 1],
    });
  });

  test('integers beyond int32 and unfit dtypes are refused', () => {
    const file = new SafetensorsFile(
      encode({
        big: {dtype: 'I64', shape: [2], data: BigInt64Array.of(1n, 2n ** 31n)},
        real: {dtype: 'F64', shape: [1], data: Float64Array.of(1)},
        e4m3: {dtype: 'F8_E4M3', shape: [1], data: Uint8Array.of(1)},
      }),
      'odd.safetensors',
    );
    const big = errorOf(() => file.int32('big'));
    expect(big).toMatchObject({file: 'odd.safetensors', tensor: 'big'});
    expect(big.message).toMatch(/element 1 is 2147483648/);
    expect(errorOf(() => file.float32('big')).message).toMatch(/I64.*expected F32, F16, BF16/);
    expect(errorOf(() => file.float32('real')).message).toMatch(/F64/);
    expect(errorOf(() => file.float32('e4m3')).message).toMatch(/F8_E4M3/);
    expect(errorOf(() => file.int32('real')).message).toMatch(/F64.*expected I32/);
    expect([...file.bytes('e4m3')]).toEqual([1]);
  });

  test('scalars, empty tensors, empty files and metadata', () => {
    const file = new SafetensorsFile(
      encode({
        scalar: {dtype: 'F32', shape: [], data: Float32Array.of(2.5)},
        empty: {dtype: 'F16', shape: [3, 0], data: new Uint8Array(0)},
      }),
    );
    expect([...file.float32('scalar')]).toEqual([2.5]);
    expect(file.float32('empty').length).toBe(0);
    expect(file.entry('empty').shape).toEqual([3, 0]);
    expect(file.metadata.get('format')).toBe('pt');
    expect(new SafetensorsFile(fileOf({})).names()).toEqual([]);
  });

  test('what is read does not share memory with the file, whatever array holds it', () => {
    const bytes = encode({x: {dtype: 'F32', shape: [1], data: Float32Array.of(1)}});
    for (const source of [bytes, bytes.buffer as ArrayBuffer, Buffer.from(bytes)]) {
      const file = new SafetensorsFile(source);
      const values = file.float32('x');
      values[0] = 7;
      file.bytes('x').fill(255);
      expect([...file.float32('x')]).toEqual([1]);
      expect(values.buffer.byteLength).toBe(4);
    }
  });
});

describe('damaged and hostile files', () => {
  const f32 = (begin: number, end: number, shape = [(end - begin) / 4]): unknown => ({
    dtype: 'F32',
    shape,
    data_offsets: [begin, end],
  });
  const eight = new Uint8Array(8);
  const cases: [string, Uint8Array, RegExp, string?][] = [
    ['nothing', new Uint8Array(0), /has 0 bytes/],
    ['seven bytes', new Uint8Array(7), /has 7 bytes.*at least 8/],
    ['header beyond the file', fileOf('{}').slice(0, 9), /2 bytes long, but only 1 follow/],
    ['header of 2^64 - 1 bytes', new Uint8Array(16).fill(255), /18446744073709551615 bytes long/],
    ['an HTML page', new TextEncoder().encode('<!DOCTYPE html><html>'), /bytes long, but only/],
    ['no JSON', fileOf('{"x": '), /not valid JSON/],
    ['empty header', fileOf(''), /not valid JSON/],
    ['not UTF-8', fileOf('{"\u0000').map((b) => (b === 0x22 ? 0xff : b)), /not valid JSON/],
    ['an array', fileOf([]), /header is \[\]; expected a JSON object/],
    ['null', fileOf('null'), /header is null/],
    ['deep nesting', fileOf('['.repeat(1e6)), /not valid JSON/],
    [
      'duplicate tensor',
      fileOf(`{"x":${JSON.stringify(f32(0, 8))},"x":1}`, eight),
      /duplicate key "x"/,
    ],
    ['duplicate key, escaped', fileOf('{"\\u0078":1,"x":2}'), /duplicate key "x"/],
    ['duplicate field', fileOf('{"x":{"dtype":"F32","dtype":"F16"}}'), /duplicate key "dtype"/],
    ['tensor is a number', fileOf({x: 3}), /described by 3/, 'x'],
    [
      'unknown dtype',
      fileOf({x: {dtype: 'F31', shape: [], data_offsets: [0, 4]}}),
      /unsupported dtype "F31"/,
      'x',
    ],
    [
      'no dtype',
      fileOf({x: {shape: [], data_offsets: [0, 4]}}),
      /unsupported dtype undefined/,
      'x',
    ],
    ['negative shape', fileOf({x: f32(0, 8, [-2])}, eight), /shape is \[-2\]/, 'x'],
    ['fractional shape', fileOf({x: f32(0, 8, [1.5])}, eight), /shape is \[1.5\]/, 'x'],
    [
      'shape is text',
      fileOf({x: {dtype: 'F32', shape: '2', data_offsets: [0, 8]}}, eight),
      /shape is "2"/,
      'x',
    ],
    [
      'no offsets',
      fileOf({x: {dtype: 'F32', shape: [2]}}, eight),
      /data_offsets are undefined/,
      'x',
    ],
    [
      'three offsets',
      fileOf({x: {dtype: 'F32', shape: [2], data_offsets: [0, 8, 8]}}, eight),
      /data_offsets are/,
      'x',
    ],
    ['negative offset', fileOf({x: f32(-4, 4, [2])}, eight), /data_offsets are \[-4,4\]/, 'x'],
    ['backward offsets', fileOf({x: f32(8, 0, [2])}, eight), /run backwards/, 'x'],
    ['past the end', fileOf({x: f32(0, 12)}, eight), /reach past the data, which is 8/, 'x'],
    [
      'too few bytes for the shape',
      fileOf({x: f32(0, 8, [3])}, eight),
      /span 8 bytes, but shape \[3\] of F32 takes 12/,
      'x',
    ],
    [
      'shape product overflows',
      fileOf({x: f32(0, 8, [2 ** 40, 2 ** 40])}, eight),
      /span 8 bytes/,
      'x',
    ],
    ['overlap', fileOf({x: f32(0, 8), y: f32(4, 8)}, eight), /overlap those of tensor "x"/, 'y'],
    ['same bytes twice', fileOf({x: f32(0, 8), y: f32(0, 8)}, eight), /overlap/, 'y'],
    ['hole', fileOf({x: f32(4, 8)}, eight), /4 bytes before it belong to no tensor/, 'x'],
    ['bytes left over', fileOf({x: f32(0, 4)}, eight), /last 4 bytes of the file/],
    ['metadata is a list', fileOf({__metadata__: []}), /__metadata__ is \[\]/],
    ['metadata holds a number', fileOf({__metadata__: {a: 1}}), /"a": 1; expected a string/],
  ];

  const named = cases.map(([title, bytes, message, tensor]) => ({title, bytes, message, tensor}));
  test.each(named)('$title', ({bytes, message, tensor}) => {
    const error = errorOf(() => new SafetensorsFile(bytes, 'bad.safetensors'));
    expect(error.message).toMatch(message);
    expect(error.message).toMatch(/^bad\.safetensors/);
    expect(error.message.length).toBeLessThan(400);
    expect(error).toMatchObject({name: 'SafetensorsError', file: 'bad.safetensors'});
    expect(error.tensor).toBe(tensor);
  });

  test('every truncation of a good file is refused', () => {
    const good = encode({
      x: {dtype: 'F32', shape: [2], data: Float32Array.of(1, 2)},
      y: {dtype: 'F16', shape: [1], data: Uint16Array.of(1)},
    });
    for (let length = 0; length < good.length; length++) {
      errorOf(() => new SafetensorsFile(good.slice(0, length)));
    }
    expect(new SafetensorsFile(good).names()).toEqual(['x', 'y']);
  });

  test('names of Object.prototype are names like others', () => {
    const bytes = fileOf(`{"__proto__":${JSON.stringify(f32(0, 8))}}`, eight);
    const file = new SafetensorsFile(bytes);
    expect(file.names()).toEqual(['__proto__']);
    expect(file.has('constructor')).toBe(false);
    const error = errorOf(() => file.entry('constructor'));
    expect(error.tensor).toBe('constructor');
  });
});

describe('shards and directories', () => {
  const one = encode({a: {dtype: 'F32', shape: [1], data: Float32Array.of(1)}});
  const two = encode({b: {dtype: 'I64', shape: [1], data: BigInt64Array.of(2n)}});
  const index = (weightMap: unknown): string =>
    JSON.stringify({metadata: {}, weight_map: weightMap});
  let directory: string;

  beforeEach(() => {
    directory = mkdtempSync(join(tmpdir(), 'safetensors-'));
  });
  afterEach(() => rmSync(directory, {recursive: true, force: true}));
  const write = (name: string, content: string | Uint8Array): void =>
    writeFileSync(join(directory, name), content);

  test('an index joins its shards', () => {
    write('one.safetensors', one);
    write('two.safetensors', two);
    write('model.safetensors.index.json', index({a: 'one.safetensors', b: 'two.safetensors'}));
    const store = openSafetensorsDirectory(directory);
    expect(store.names().sort()).toEqual(['a', 'b']);
    expect([...store.float32('a')]).toEqual([1]);
    expect([...store.int32('b')]).toEqual([2]);
    expect(store.bytes('b').length).toBe(8);
    expect(store.entry('b').file).toBe(join(directory, 'two.safetensors'));
    expect(errorOf(() => store.float32('c')).tensor).toBe('c');
  });

  test('a single file goes before an index', () => {
    write('model.safetensors', one);
    write('model.safetensors.index.json', 'not read');
    expect(openSafetensorsDirectory(directory).names()).toEqual(['a']);
  });

  test('a missing shard, and a shard without its tensor, are named', () => {
    write('one.safetensors', one);
    write('model.safetensors.index.json', index({a: 'one.safetensors', b: 'two.safetensors'}));
    const missing = errorOf(() => openSafetensorsDirectory(directory));
    expect(missing).toMatchObject({file: join(directory, 'two.safetensors'), tensor: 'b'});
    expect(missing.message).toMatch(/missing shard/);

    write('model.safetensors.index.json', index({b: 'one.safetensors'}));
    const misplaced = errorOf(() => openSafetensorsDirectory(directory));
    expect(misplaced).toMatchObject({file: join(directory, 'one.safetensors'), tensor: 'b'});

    const parsed = parseShardIndex(index({a: 'one.safetensors'}));
    expect(errorOf(() => new ShardedSafetensors(parsed, new Map())).message).toMatch(/is missing/);
  });

  test.each(['../one.safetensors', '/etc/passwd', 'sub\\one', '..', '', 5, null])(
    'a shard called %p is refused',
    (shard) => {
      const error = errorOf(() => parseShardIndex(index({a: shard}), 'index.json'));
      expect(error).toMatchObject({file: 'index.json', tensor: 'a'});
      expect(error.message).toMatch(/plain file name/);
    },
  );

  test('a damaged index is refused', () => {
    expect(errorOf(() => parseShardIndex('{')).message).toMatch(/not valid JSON/);
    expect(errorOf(() => parseShardIndex('{"weight_map":{"a":"x","a":"y"}}')).message).toMatch(
      /duplicate key "a"/,
    );
    expect(errorOf(() => parseShardIndex('{}')).message).toMatch(/weight_map is undefined/);
    expect(errorOf(() => parseShardIndex('[]')).message).toMatch(/weight_map/);
  });

  test('an empty or absent directory, and a directory in place of a file', () => {
    expect(errorOf(() => openSafetensorsDirectory(directory)).message).toMatch(
      /neither model.safetensors nor model.safetensors.index.json/,
    );
    expect(errorOf(() => openSafetensorsFile(join(directory, 'absent'))).message).toMatch(/ENOENT/);
    errorOf(() => openSafetensorsFile(directory));
  });

  test('a file shortened after it was opened is noticed', () => {
    write('model.safetensors', one);
    const store = openSafetensorsDirectory(directory);
    write('model.safetensors', one.slice(0, one.length - 2));
    expect(errorOf(() => store.float32('a')).message).toMatch(/shortened/);
  });

  test('the model of this repository', () => {
    const path = join(__dirname, '../../models/gpt2/js-gpt/model.safetensors');
    const fromDisk = openSafetensorsFile(path);
    const fromMemory = new SafetensorsFile(readFileSync(path));
    const name = 'transformer.h.3.attn.c_attn.weight';
    expect(fromDisk.entry(name)).toMatchObject({dtype: 'F16', shape: [256, 768]});
    expect(fromDisk.float32(name)).toEqual(fromMemory.float32(name));
    expect(fromDisk.names().length).toBe(76);
  });
});
