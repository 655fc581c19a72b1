/** Where the prepared folder is: SAGE_TENSORFLOW_DIR, or `.sage-tensorflow` from the working directory upwards. */
import {existsSync} from 'node:fs';
import {homedir} from 'node:os';
import {dirname, join, resolve} from 'node:path';
import {tensorflowEnvironment} from '../runtime/config.js';
import {hasManifest} from './manifest.js';

export const FOLDER_NAME = '.sage-tensorflow';

/** What was found, and every place that was looked at. */
export interface FolderSearch {
  readonly folder: string | null;
  /** Absolute paths in the order in which they were tried. */
  readonly searched: readonly string[];
  /** Whether the environment names the folder, so that nothing else was tried. */
  readonly fromEnvironment: boolean;
}

/** @param from Absolute path of the directory to start at. */
export function findTensorflowFolder(from: string = process.cwd()): FolderSearch {
  const {directory} = tensorflowEnvironment();
  if (directory !== null) {
    const folder = resolve(from, directory);
    return {
      folder: hasManifest(folder) ? folder : null,
      searched: [folder],
      fromEnvironment: true,
    };
  }
  const searched = ancestors(from).map((parent) => join(parent, FOLDER_NAME));
  return {folder: searched.find(hasManifest) ?? null, searched, fromEnvironment: false};
}

/** Where the set-up puts it unless told otherwise: beside the nearest package.json upwards, or here. */
export function defaultFolder(from: string = process.cwd()): string {
  return join(projectFolder(from), FOLDER_NAME);
}

/** The directory of the nearest package.json upwards, or the given one. */
export function projectFolder(from: string = process.cwd()): string {
  return ancestors(from).find((parent) => existsSync(join(parent, 'package.json'))) ?? from;
}

/** Where downloads are kept between runs: XDG_CACHE_HOME, or `.cache` in the home directory. */
export function defaultCache(): string {
  const {cacheHome} = tensorflowEnvironment();
  return join(cacheHome ?? join(homedir(), '.cache'), 'tfjs-sage-attention');
}

/** A directory and everything above it. */
function ancestors(from: string): string[] {
  const parent = dirname(from);
  return parent === from ? [from] : [from, ...ancestors(parent)];
}
