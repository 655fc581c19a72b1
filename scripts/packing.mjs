// Packs what is published: the main package and the platform packages that carry a built addon.
// The main tarball is packed twice: once from the tree, once with a manifest fit for users (see `releaseManifest`).
import {spawnSync} from 'node:child_process';
import {copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {builtAddon} from './set_up/native_addon.mjs';
import {root, SetUpError} from './set_up/workspace.mjs';

/** npm as the one that runs this script, or else the one on the path. */
export function npm(args, options = {}) {
  const npmCli = process.env.npm_execpath;
  const [command, first] = npmCli?.endsWith('.js') ? [process.execPath, [npmCli]] : ['npm', []];
  const child = spawnSync(command, [...first, ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 2],
    maxBuffer: 1 << 26,
    ...options,
  });
  if (child.status !== 0)
    throw new SetUpError(`npm ${args[0]} failed: ${child.stdout ?? child.error}`);
  return child.stdout;
}

export function readManifest(directory) {
  return JSON.parse(readFileSync(join(directory, 'package.json'), 'utf8'));
}

/** Packs a folder into `destination`; returns the path of the tarball. */
function pack(directory, destination) {
  const args = ['pack', directory, '--ignore-scripts', '--json', '--pack-destination', destination];
  const [{filename}] = JSON.parse(npm(args, {cwd: root}));
  // npm 10 reports a scoped name with its slash, and writes the file with a dash.
  return join(destination, filename.replace('@', '').replace('/', '-'));
}

/**
 * The manifest as published: scripts and development dependencies belong to the repository, and the platform packages
 * become optional dependencies (in the repository they would make `npm ci` fetch what is built here).
 */
function releaseManifest(manifest) {
  const published = {...manifest};
  delete published.scripts;
  delete published.devDependencies;
  const names = platformPackages().map((directory) => readManifest(directory).name);
  return {
    ...published,
    optionalDependencies: Object.fromEntries(names.map((name) => [name, manifest.version])),
  };
}

/** Folders of npm/, one for each platform that has a package. */
export function platformPackages() {
  return ['linux-x64'].map((platform) => join(root, 'npm', platform));
}

export function packMain(destination) {
  const work = mkdtempSync(join(tmpdir(), 'sage-pack-'));
  try {
    mkdirSync(destination, {recursive: true});
    const tarball = pack(root, work);
    const unpacked = spawnSync('tar', ['-xzf', tarball, '-C', work], {stdio: ['ignore', 2, 2]});
    if (unpacked.status !== 0) throw new SetUpError(`tar could not unpack ${tarball}`);
    const directory = join(work, 'package');
    const manifest = releaseManifest(readManifest(directory));
    writeFileSync(join(directory, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`);
    return pack(directory, destination);
  } finally {
    rmSync(work, {recursive: true, force: true});
  }
}

/** Copies the addon that was built on this machine into its platform package and packs that. */
export function packPlatform(directory, destination) {
  const manifest = readManifest(directory);
  const mainVersion = readManifest(root).version;
  if (manifest.version !== mainVersion) {
    throw new SetUpError(
      `${manifest.name} is ${manifest.version}, the main package ${mainVersion}.`,
    );
  }
  if (!manifest.os.includes(process.platform) || !manifest.cpu.includes(process.arch)) {
    throw new SetUpError(
      `${manifest.name} cannot be packed on ${process.platform}-${process.arch}.`,
    );
  }
  const addon = builtAddon();
  if (addon === null) throw new SetUpError('No addon is built: npm run build:native.');
  copyFileSync(addon, join(directory, manifest.main));
  copyFileSync(join(root, 'LICENSE'), join(directory, 'LICENSE'));
  mkdirSync(destination, {recursive: true});
  return pack(directory, destination);
}
