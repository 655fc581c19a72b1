/** Image files as pixels: PPM and PGM here, whatever else by the optional package sharp. */
import {readFileSync} from 'node:fs';
import type {PixelImage} from '../../models/vit/resize_image.js';
import {CliError, messageOf} from './cli_error.js';

/** The part of sharp that is used; it is no dependency, so its own types may be missing. */
interface SharpImage {
  removeAlpha(): SharpImage;
  toColourspace(name: string): SharpImage;
  rotate(): SharpImage;
  raw(): SharpImage;
  toBuffer(options: {resolveWithObject: true}): Promise<{
    data: Uint8Array;
    info: {width: number; height: number; channels: number};
  }>;
}

/**
 * Reads an image in colour.
 *
 * @param path A binary PPM or PGM with 8 bits a value; PNG, JPEG, WebP and more where sharp is installed.
 * @returns Three channels, red, green and blue.
 * @throws CliError for a file that cannot be read or decoded.
 */
export async function readImage(path: string): Promise<PixelImage> {
  let bytes: Uint8Array;
  try {
    bytes = readFileSync(path);
  } catch (cause) {
    throw new CliError(`'${path}' cannot be read: ${messageOf(cause)}.`, null, {cause});
  }
  return readPortableMap(bytes, path) ?? decodeBySharp(bytes, path);
}

/** Magic number and three numbers, apart by white space or comments, then one white space. */
const HEADER = /^P([56])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)\s/;

/** Longest header that is looked for. */
const HEADER_BYTES = 1024;

/** A binary PPM or PGM; undefined for other formats. */
export function readPortableMap(bytes: Uint8Array, path: string): PixelImage | undefined {
  const start = new TextDecoder('latin1').decode(bytes.subarray(0, HEADER_BYTES));
  const header = HEADER.exec(start);
  if (header === null) return undefined;
  const [width, height, most] = header.slice(2).map(Number) as [number, number, number];
  if (most !== 255) {
    throw new CliError(`'${path}' has values up to ${most}; expected 255, one byte a value.`);
  }
  const channels = header[1] === '6' ? 3 : 1;
  const values = width * height * channels;
  const data = bytes.subarray(header[0].length, header[0].length + values);
  if (values === 0 || data.length < values) {
    throw new CliError(
      `'${path}' holds ${data.length} of the ${values} values of ${width} x ${height} pixels.`,
    );
  }
  if (channels === 3) return {width, height, channels, data};
  const colour = new Uint8Array(3 * values);
  data.forEach((value, i) => colour.fill(value, 3 * i, 3 * i + 3));
  return {width, height, channels: 3, data: colour};
}

/** Widened, so that compilers do not ask for its types. */
const SHARP = String('sharp');

async function decodeBySharp(bytes: Uint8Array, path: string): Promise<PixelImage> {
  let sharp: (input: Uint8Array) => SharpImage;
  try {
    const module = (await import(SHARP)) as {default: (input: Uint8Array) => SharpImage};
    sharp = module.default;
  } catch (cause) {
    throw new CliError(
      `'${path}' is no binary PPM or PGM, and the package that reads other formats is not installed.`,
      'npm install sharp, or convert the image to PPM.',
      {cause},
    );
  }
  try {
    // Turned as the camera says; grey and indexed images become red, green and blue.
    const image = sharp(bytes).rotate().removeAlpha().toColourspace('srgb').raw();
    const {data, info} = await image.toBuffer({resolveWithObject: true});
    const {width, height, channels} = info;
    return {width, height, channels, data};
  } catch (cause) {
    throw new CliError(`'${path}' cannot be decoded: ${messageOf(cause)}.`, null, {cause});
  }
}
