// Step 1: the locked dependencies. `npm ci` when node_modules is missing or was installed from another lock file.
// No package of the lock file needs its install script, so none is run.
import {readFileSync} from 'node:fs';
import {join} from 'node:path';
import {
  dependency,
  hashOf,
  isStamped,
  root,
  runQuietly,
  say,
  secondsSince,
  SetUpError,
  writeStamp,
} from './workspace.mjs';

/** npm runs scripts with `npm_execpath` set; without it the npm on the path serves. */
function npmCommand() {
  const npmCli = process.env.npm_execpath;
  return npmCli?.endsWith('.js') ? [process.execPath, [npmCli]] : ['npm', []];
}

/** Whether node_modules, installed by hand, holds what the lock file asks for. */
function matchesLockFile() {
  let locked;
  let installed;
  try {
    locked = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')).packages;
    installed = JSON.parse(readFileSync(dependency('.package-lock.json'), 'utf8')).packages;
  } catch {
    return false;
  }
  return Object.entries(locked).every(([path, {version, optional}]) => {
    // The root itself is not installed; optional packages are for some systems only.
    if (path === '') return true;
    return path in installed ? installed[path].version === version : optional === true;
  });
}

const stamp = dependency('.sage-stamp');

const hashOfLockFile = () =>
  hashOf([join(root, 'package-lock.json')], process.platform, process.arch);

/** Whether there is nothing to install. */
export function dependenciesAreCurrent() {
  return isStamped(stamp, hashOfLockFile()) || matchesLockFile();
}

export function prepareDependencies() {
  if (!dependenciesAreCurrent()) {
    const start = performance.now();
    say('installing the locked dependencies (npm ci) ...');
    const [command, first] = npmCommand();
    const options = ['--ignore-scripts', '--no-audit', '--no-fund', '--include=dev'];
    if (runQuietly(command, [...first, 'ci', ...options]) !== 0) {
      throw new SetUpError(
        'npm ci failed (its messages are above). It needs the network once, to fetch what package-lock.json lists.',
      );
    }
    say(`dependencies installed in ${secondsSince(start)}`);
  }
  writeStamp(stamp, hashOfLockFile());
}
