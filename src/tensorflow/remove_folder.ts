/** Taking a prepared folder away: what the set-up made, and nothing else. */
import {existsSync, lstatSync, readdirSync, rmdirSync, rmSync} from 'node:fs';
import {dirname, join, relative} from 'node:path';
import {hasManifest, MANIFEST_NAME, readManifest} from './manifest.js';
import {OWN_FILES, stagingOf} from './staging.js';
import {setUpFailed} from './tensorflow_errors.js';

export interface Removal {
  /** Absolute paths that are gone. */
  readonly removed: readonly string[];
  /** Files in the folder that the set-up did not make; they and the folder stay. */
  readonly kept: readonly string[];
}

/**
 * Removes the files that the manifest lists, then the folder if it is empty, and what an unfinished set-up left beside it.
 * @throws SageAttentionError `tensorflow-set-up-failed` when the folder is none of the set-up's.
 */
export function removeFolder(folder: string): Removal {
  const removed: string[] = [];
  const staging = stagingOf(folder);
  if (existsSync(staging)) {
    rmSync(staging, {recursive: true, force: true});
    removed.push(staging);
  }
  if (!existsSync(folder)) return {removed, kept: []};
  if (!hasManifest(folder)) {
    throw setUpFailed(
      `${folder} has no ${MANIFEST_NAME}, so the set-up did not make it; nothing in it was removed.`,
      'Name the folder with --dir, or remove it yourself.',
      'dir',
    );
  }
  const {files, cuda} = readManifest(folder);
  const listed = [
    ...files.map(({path}) => path),
    ...(cuda?.links ?? []).map(({path}) => path),
    ...OWN_FILES,
    MANIFEST_NAME,
  ];
  const parents = new Set<string>();
  for (const path of listed) {
    const file = join(folder, path);
    // A manifest that was edited must not lead out of the folder.
    if (relative(folder, file).startsWith('..')) continue;
    if (lstatSync(file, {throwIfNoEntry: false}) === undefined) continue;
    // A link goes, what it points at stays.
    rmSync(file);
    removed.push(file);
    for (let parent = dirname(file); parent.startsWith(folder); parent = dirname(parent)) {
      parents.add(parent);
    }
  }
  for (const parent of [...parents, folder].sort((a, b) => b.length - a.length)) {
    if (existsSync(parent) && readdirSync(parent).length === 0) rmdirSync(parent);
  }
  if (!existsSync(folder)) removed.push(folder);
  return {removed, kept: existsSync(folder) ? readdirSync(folder) : []};
}
