// The safetensors container: 8 bytes header length (little-endian), a JSON header, then the tensors' bytes.
// Everything about the file is checked before a tensor is handed out, as weights come from anywhere. Browser-safe.

import {
  BYTES_PER_ELEMENT,
  copyBytes,
  FLOAT32_DTYPES,
  INT32_DTYPES,
  toFloat32,
  toInt32,
} from './dtypes.js';
import {quote, SafetensorsError} from './errors.js';
import {parseStrictJson} from './strict_json.js';

/** Bytes that can be read in pieces, so that a file larger than memory's largest buffer still opens. */
export interface ByteSource {
  /** Total length in bytes. */
  readonly length: number;
  /** The bytes [begin, end); at least that many exist. May be a view: callers do not write to it. */
  read(begin: number, end: number): Uint8Array;
}

/** What the header says of one tensor. */
export interface TensorEntry {
  readonly name: string;
  /** The file that holds the tensor. */
  readonly file: string;
  /** The format's own name, e.g. 'F16'. */
  readonly dtype: string;
  readonly shape: readonly number[];
  /** First byte and the byte after the last, counted from the file's beginning. */
  readonly begin: number;
  readonly end: number;
}

/** Named tensors, from one file or from several. Missing names and unfit dtypes throw `SafetensorsError`. */
export interface TensorStore {
  /** What the store is called in messages: a path or a name. */
  readonly file: string;
  names(): string[];
  has(name: string): boolean;
  entry(name: string): TensorEntry;
  /** The raw bytes, copied. */
  bytes(name: string): Uint8Array;
  /** F32, F16 or BF16 as float32, exactly. */
  float32(name: string): Float32Array;
  /** Integers and booleans as int32; a value outside int32 is an error. */
  int32(name: string): Int32Array;
}

const LENGTH_BYTES = 8;

/** The reference implementation's own limit; it keeps a hostile length from allocating gigabytes. */
const MAX_HEADER_BYTES = 100_000_000;

/** One safetensors file. */
export class SafetensorsFile implements TensorStore {
  /** The free-form `__metadata__` of the header. */
  readonly metadata: ReadonlyMap<string, string>;
  private readonly entries: ReadonlyMap<string, TensorEntry>;
  private readonly source: ByteSource;

  /**
   * Reads and checks the header; tensors are read when asked for.
   *
   * @param source the file's bytes, or something that reads them in pieces
   * @param file what to call the file in messages. Default: 'buffer'
   * @throws SafetensorsError if the file is not a well-formed safetensors file
   */
  constructor(
    source: ByteSource | ArrayBuffer | Uint8Array,
    readonly file = 'buffer',
  ) {
    this.source = toByteSource(source);
    const {entries, metadata} = parseHeader(this.source, file);
    this.entries = entries;
    this.metadata = metadata;
  }

  names(): string[] {
    return [...this.entries.keys()];
  }

  has(name: string): boolean {
    return this.entries.has(name);
  }

  entry(name: string): TensorEntry {
    const entry = this.entries.get(name);
    if (entry === undefined) {
      throw new SafetensorsError(
        `no tensor of this name; the file holds ${this.entries.size} others`,
        {file: this.file, tensor: name},
      );
    }
    return entry;
  }

  bytes(name: string): Uint8Array {
    const {begin, end} = this.entry(name);
    return copyBytes(this.source.read(begin, end));
  }

  float32(name: string): Float32Array {
    const {begin, end, dtype} = this.entry(name);
    const values = toFloat32(this.source.read(begin, end), dtype);
    if (values === undefined) throw this.unsupported(name, dtype, FLOAT32_DTYPES);
    return values;
  }

  int32(name: string): Int32Array {
    const {begin, end, dtype} = this.entry(name);
    const values = toInt32(this.source.read(begin, end), dtype);
    if (values === undefined) throw this.unsupported(name, dtype, INT32_DTYPES);
    if (values instanceof Int32Array) return values;
    throw new SafetensorsError(
      `element ${values.index} is ${values.value}, outside the range of int32`,
      {file: this.file, tensor: name},
    );
  }

  private unsupported(name: string, dtype: string, wanted: readonly string[]): SafetensorsError {
    return new SafetensorsError(
      `dtype ${dtype} is unsupported here; expected ${wanted.join(', ')}`,
      {
        file: this.file,
        tensor: name,
      },
    );
  }
}

function toByteSource(source: ByteSource | ArrayBuffer | Uint8Array): ByteSource {
  if ('read' in source) return source;
  const bytes = ArrayBuffer.isView(source) ? source : new Uint8Array(source);
  return {length: bytes.length, read: (begin, end) => bytes.subarray(begin, end)};
}

/** Reads the header and checks that the tensors fill the rest of the file exactly, without overlap or hole. */
function parseHeader(
  source: ByteSource,
  file: string,
): {entries: Map<string, TensorEntry>; metadata: Map<string, string>} {
  const fail = (message: string, tensor?: string, cause?: unknown): SafetensorsError =>
    new SafetensorsError(message, {file, tensor, cause});

  if (source.length < LENGTH_BYTES) {
    throw fail(`has ${source.length} bytes; a safetensors file has at least ${LENGTH_BYTES}`);
  }
  const head = source.read(0, LENGTH_BYTES);
  const declared = new DataView(head.buffer, head.byteOffset, LENGTH_BYTES).getBigUint64(0, true);
  const available = source.length - LENGTH_BYTES;
  if (declared > BigInt(available)) {
    throw fail(
      `the header says it is ${declared} bytes long, but only ${available} follow ` +
        '(a truncated file, or not safetensors at all)',
    );
  }
  if (declared > BigInt(MAX_HEADER_BYTES)) {
    throw fail(`the header is ${declared} bytes long; at most ${MAX_HEADER_BYTES} are allowed`);
  }
  const dataBegin = LENGTH_BYTES + Number(declared);

  let header: unknown;
  try {
    const text = new TextDecoder('utf-8', {fatal: true, ignoreBOM: true}).decode(
      source.read(LENGTH_BYTES, dataBegin),
    );
    header = parseStrictJson(text);
  } catch (cause) {
    throw fail(`the header is not valid JSON (${reasonOf(cause)})`, undefined, cause);
  }
  if (!isRecord(header)) {
    throw fail(`the header is ${quote(header)}; expected a JSON object`);
  }

  const entries = new Map<string, TensorEntry>();
  let metadata = new Map<string, string>();
  for (const [name, value] of Object.entries(header)) {
    if (name === '__metadata__') metadata = parseMetadata(value, fail);
    else entries.set(name, parseEntry(name, value, file, dataBegin, source.length, fail));
  }
  checkCoverage([...entries.values()], dataBegin, source.length, fail);
  return {entries, metadata};
}

type Fail = (message: string, tensor?: string) => SafetensorsError;

function parseMetadata(value: unknown, fail: Fail): Map<string, string> {
  if (!isRecord(value))
    throw fail(`__metadata__ is ${quote(value)}; expected an object of strings`);
  const metadata = new Map<string, string>();
  for (const [key, text] of Object.entries(value)) {
    if (typeof text !== 'string') {
      throw fail(`__metadata__ holds ${quote(key)}: ${quote(text)}; expected a string`);
    }
    metadata.set(key, text);
  }
  return metadata;
}

function parseEntry(
  name: string,
  value: unknown,
  file: string,
  dataBegin: number,
  fileLength: number,
  fail: Fail,
): TensorEntry {
  if (!isRecord(value)) {
    throw fail(`described by ${quote(value)}; expected {dtype, shape, data_offsets}`, name);
  }
  const {dtype, shape, data_offsets: offsets} = value;
  const size = typeof dtype === 'string' ? BYTES_PER_ELEMENT.get(dtype) : undefined;
  if (typeof dtype !== 'string' || size === undefined) {
    const known = [...BYTES_PER_ELEMENT.keys()].join(', ');
    throw fail(`unsupported dtype ${quote(dtype)}; expected one of ${known}`, name);
  }
  if (!isCountList(shape)) {
    throw fail(`shape is ${quote(shape)}; expected a list of whole numbers >= 0`, name);
  }
  if (!isCountList(offsets) || offsets.length !== 2) {
    throw fail(`data_offsets are ${quote(offsets)}; expected two whole numbers >= 0`, name);
  }
  const [begin, end] = offsets as [number, number];
  const dataLength = fileLength - dataBegin;
  if (begin > end) throw fail(`data_offsets [${begin}, ${end}] run backwards`, name);
  if (end > dataLength) {
    throw fail(
      `data_offsets [${begin}, ${end}] reach past the data, which is ${dataLength} bytes long ` +
        '(a truncated file?)',
      name,
    );
  }
  // Unsafe products are above any file's length, so the comparison below still refuses them.
  const wanted = shape.reduce((product, n) => product * n, size);
  if (wanted !== end - begin) {
    throw fail(
      `data_offsets [${begin}, ${end}] span ${end - begin} bytes, but shape [${shape.join(', ')}] of ` +
        `${dtype} takes ${wanted}`,
      name,
    );
  }
  return {name, file, dtype, shape, begin: dataBegin + begin, end: dataBegin + end};
}

function checkCoverage(
  entries: TensorEntry[],
  dataBegin: number,
  fileLength: number,
  fail: Fail,
): void {
  entries.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let next = dataBegin;
  let before: TensorEntry | undefined;
  for (const entry of entries) {
    if (entry.begin < next) {
      throw fail(`its bytes overlap those of tensor ${quote(before?.name)}`, entry.name);
    }
    if (entry.begin > next) {
      throw fail(`${entry.begin - next} bytes before it belong to no tensor`, entry.name);
    }
    next = entry.end;
    before = entry;
  }
  if (next !== fileLength) {
    throw fail(`the last ${fileLength - next} bytes of the file belong to no tensor`);
  }
}

/** The text of whatever was thrown, for a message. */
export function reasonOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}

export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isCountList(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && (n as number) >= 0);
}
