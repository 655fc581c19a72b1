/** A TensorFlow wheel, read where it lies: what it is, and its two libraries and headers unpacked and checked. */
import {createHash} from 'node:crypto';
import {createWriteStream, mkdirSync, renameSync} from 'node:fs';
import {dirname, join} from 'node:path';
import {PassThrough, Transform} from 'node:stream';
import {pipeline} from 'node:stream/promises';
import {text} from 'node:stream/consumers';
import zlib from 'node:zlib';
import {openPromise, type Entry, type ZipFile} from 'yauzl';
import {setUpFailed, textOf} from './tensorflow_errors.js';

/** What a wheel says of itself in its `.dist-info`. */
export interface WheelMetadata {
  /** With `-` for `_` and `.`: `tensorflow` or `tensorflow-cpu`. */
  readonly project: string;
  readonly version: string;
  /** Such as `cp311-cp311-manylinux_2_27_x86_64`. */
  readonly tags: readonly string[];
}

export interface Wheel {
  readonly path: string;
  readonly metadata: WheelMetadata;
  /** By name inside the wheel. */
  readonly entries: ReadonlyMap<string, Entry>;
  /** SHA-256 by name, base64url as in `RECORD`. */
  readonly checksums: ReadonlyMap<string, string>;
  readonly zip: ZipFile;
}

const HIGH_WATER_MARK = 1 << 20;

/** Compression method of a file that is not compressed. */
const STORED = 0;

/** Node 20 has it since 20.15; older ones rely on the SHA-256 of RECORD alone. */
const crc32 = zlib.crc32 as typeof zlib.crc32 | undefined;

/** Opens a wheel, gives it to `use`, and closes it. */
export async function withWheel<T>(path: string, use: (wheel: Wheel) => Promise<T>): Promise<T> {
  let zip: ZipFile;
  try {
    zip = await openPromise(path, {autoClose: false});
  } catch (cause) {
    throw unreadable(path, cause);
  }
  try {
    return await use(await readWheel(path, zip));
  } finally {
    zip.close();
  }
}

async function readWheel(path: string, zip: ZipFile): Promise<Wheel> {
  const entries = new Map<string, Entry>();
  try {
    for await (const entry of zip.eachEntry()) entries.set(entry.fileName, entry);
    const info = [...entries.keys()].find((name) => /^[^/]+\.dist-info\/METADATA$/.test(name));
    if (info === undefined) throw new Error('it has no .dist-info/METADATA, so it is no wheel');
    const read = async (name: string): Promise<string> => {
      const entry = entries.get(info.replace(/METADATA$/, name));
      return entry === undefined ? '' : text(await zip.openReadStreamPromise(entry));
    };
    const metadata = parseMetadata(await read('METADATA'), await read('WHEEL'));
    return {path, metadata, entries, checksums: parseRecord(await read('RECORD')), zip};
  } catch (cause) {
    throw unreadable(path, cause);
  }
}

export function parseMetadata(metadata: string, wheel: string): WheelMetadata {
  const field = (source: string, name: string): string[] =>
    [...source.matchAll(new RegExp(`^${name}: (.*)$`, 'gm'))].map(([, value = '']) => value.trim());
  return {
    project: (field(metadata, 'Name')[0] ?? '').toLowerCase().replace(/[-_.]+/g, '-'),
    version: field(metadata, 'Version')[0] ?? '',
    tags: field(wheel, 'Tag'),
  };
}

/** Lines `path,sha256=<base64url>,bytes`; paths with commas are quoted, and none of those is of interest. */
function parseRecord(record: string): Map<string, string> {
  const lines = record.matchAll(/^([^",]+),sha256=([\w-]+)=*,\d*\r?$/gm);
  return new Map([...lines].map(([, path = '', sum = '']) => [path, sum]));
}

/**
 * Unpacks one file, checked against the wheel's RECORD and against the CRC-32 and size of the archive. The target appears
 * when it is whole.
 * @param onProgress Called with the bytes written so far.
 * @returns SHA-256 of the file, hexadecimal.
 */
export async function unpackFile(
  wheel: Wheel,
  name: string,
  target: string,
  onProgress: (bytes: number) => void = () => undefined,
): Promise<string> {
  const entry = wheel.entries.get(name);
  if (entry === undefined) {
    throw setUpFailed(
      `${wheel.path} holds no ${name}.`,
      'Take a wheel of TensorFlow 2.16 or newer for Linux.',
    );
  }
  mkdirSync(dirname(target), {recursive: true});
  const hash = createHash('sha256');
  let crc = 0;
  let bytes = 0;
  const check = new Transform({
    highWaterMark: HIGH_WATER_MARK,
    transform(chunk: Buffer, _, done) {
      hash.update(chunk);
      crc = crc32?.(chunk, crc) ?? entry.crc32;
      bytes += chunk.length;
      onProgress(bytes);
      done(null, chunk);
    },
  });
  const draft = `${target}.partial`;
  try {
    const packed = await wheel.zip.openReadStreamPromise(entry, {decodeFileData: false});
    // Larger pieces than the archive library's own 16 KiB: a library of 800 MB takes half the time.
    const inflate =
      entry.compressionMethod === STORED
        ? new PassThrough()
        : zlib.createInflateRaw({chunkSize: HIGH_WATER_MARK});
    const sink = createWriteStream(draft, {highWaterMark: HIGH_WATER_MARK, mode: 0o755});
    await pipeline(packed, inflate, check, sink);
  } catch (cause) {
    // A failure to write is no fault of the wheel.
    if ((cause as NodeJS.ErrnoException).syscall !== undefined) throw cause;
    throw unreadable(wheel.path, cause);
  }
  const sum = hash.digest();
  const recorded = wheel.checksums.get(name);
  if (
    bytes !== entry.uncompressedSize ||
    crc !== entry.crc32 ||
    (recorded !== undefined && sum.toString('base64url') !== recorded)
  ) {
    throw unreadable(wheel.path, new Error(`${name} does not match its checksum`));
  }
  renameSync(draft, target);
  return sum.toString('hex');
}

/** Folders with every header that tfjs-node's binding includes, directly or not; each release moves some. */
const HEADERS =
  /^tensorflow\/include\/((tensorflow\/c|tensorflow\/core\/platform|tsl\/platform|xla\/tsl\/c|xla\/tsl\/platform)\/.*\.h)$/;

/** Unpacks the headers of TensorFlow's C interface below `folder`; their names begin with `tensorflow/c/`. */
export async function unpackHeaders(wheel: Wheel, folder: string): Promise<void> {
  for (const name of wheel.entries.keys()) {
    const [, path] = HEADERS.exec(name) ?? [];
    if (path !== undefined) await unpackFile(wheel, name, join(folder, path));
  }
}

function unreadable(path: string, cause: unknown) {
  return setUpFailed(
    `${path} is no whole wheel: ${textOf(cause).replace(/\.$/, '')}.`,
    'Download it again; its size must be what the index says.',
    null,
    cause,
  );
}
