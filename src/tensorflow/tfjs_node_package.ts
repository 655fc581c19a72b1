/** The installed tfjs-node packages: where they lie, their version, and whether they brought a binding of their own. */
import {existsSync, readdirSync, readFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {dirname, join} from 'node:path';

export const TFJS_NODE_PACKAGES = ['@tensorflow/tfjs-node', '@tensorflow/tfjs-node-gpu'] as const;
export type TfjsNodeName = (typeof TFJS_NODE_PACKAGES)[number];

export interface TfjsNodePackage {
  readonly name: TfjsNodeName;
  readonly version: string;
  /** Absolute path of the package's folder. */
  readonly folder: string;
  /** What `require` of the package loads. */
  readonly main: string;
}

/** The tfjs-node package in a folder; null when it holds anything else. */
export function tfjsNodeIn(folder: string): TfjsNodePackage | null {
  let manifest: {name?: unknown; version?: unknown; main?: unknown};
  try {
    manifest = JSON.parse(readFileSync(join(folder, 'package.json'), 'utf8')) as typeof manifest;
  } catch {
    return null;
  }
  const name = TFJS_NODE_PACKAGES.find((known) => known === manifest?.name);
  if (name === undefined) return null;
  const main = join(folder, typeof manifest.main === 'string' ? manifest.main : 'dist/index.js');
  return {name, version: String(manifest.version), folder, main};
}

/**
 * The package that a module in one of these directories gets.
 * @param from Directories to resolve from, in order; the first that finds it decides.
 */
export function findTfjsNode(
  from: readonly string[],
  names: readonly TfjsNodeName[] = TFJS_NODE_PACKAGES,
): TfjsNodePackage | null {
  for (const directory of from) {
    const {resolve} = createRequire(join(directory, 'index.js'));
    for (const name of names) {
      try {
        const found = tfjsNodeIn(dirname(resolve(`${name}/package.json`)));
        if (found !== null) return found;
      } catch {
        // Not installed as seen from there.
      }
    }
  }
  return null;
}

/** The binding that the package's own install script left, for any version of Node-API; null when there is none. */
export function stockBinding({folder}: TfjsNodePackage): string | null {
  const lib = join(folder, 'lib');
  if (!existsSync(lib)) return null;
  for (const version of readdirSync(lib)) {
    const path = join(lib, version, 'tfjs_binding.node');
    if (existsSync(path)) return path;
  }
  return null;
}
