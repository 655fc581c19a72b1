/** Sizes and checksums of files, and whether files are still what a record says. */
import {createHash} from 'node:crypto';
import {createReadStream, lstatSync, readlinkSync, statSync} from 'node:fs';
import {join} from 'node:path';
import {pipeline} from 'node:stream/promises';
import type {FileRecord} from './manifest.js';

/** Large files go through in pieces of this size. */
const CHUNK_BYTES = 1 << 20;

/** SHA-256 of a file, hexadecimal. */
export async function sha256OfFile(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path, {highWaterMark: CHUNK_BYTES}), hash);
  return hash.digest('hex');
}

/**
 * The record of a file as it lies in a folder; a symbolic link is read through.
 * @param sha256 Its checksum where that is known already.
 */
export async function recordFile(
  folder: string,
  path: string,
  sha256?: string,
): Promise<FileRecord> {
  const file = join(folder, path);
  const target = lstatSync(file).isSymbolicLink() ? readlinkSync(file) : null;
  return {path, bytes: statSync(file).size, sha256: sha256 ?? (await sha256OfFile(file)), target};
}

/** What is wrong with a file by its size alone, in words; null when nothing is. */
export function findSizeFault(folder: string, {path, bytes}: FileRecord): string | null {
  const facts = statSync(join(folder, path), {throwIfNoEntry: false});
  if (facts === undefined) return `${path} is missing`;
  return facts.size === bytes ? null : `${path} has ${facts.size} bytes, expected ${bytes}`;
}

/** Whether all files are as recorded, contents included. */
export async function areUnchanged(
  folder: string,
  records: readonly FileRecord[],
): Promise<boolean> {
  for (const record of records) {
    if (findSizeFault(folder, record) !== null) return false;
    if ((await sha256OfFile(join(folder, record.path))) !== record.sha256) return false;
  }
  return true;
}
