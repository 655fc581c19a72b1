// Where things lie in the repository, how to run a program in it, and how to tell the user: shared ground of the
// set-up steps. Node built-ins only, since node_modules may not exist yet.
import {spawnSync} from 'node:child_process';
import {createHash} from 'node:crypto';
import {existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync} from 'node:fs';
import {dirname, join, relative, sep} from 'node:path';
import {fileURLToPath} from 'node:url';

export const root = join(dirname(fileURLToPath(import.meta.url)), '..', '..');

/** A failure that is told in words, without a stack. */
export class SetUpError extends Error {}

/** Progress goes to stderr: stdout belongs to the job, and with `--json` to nothing but its object. */
export function say(message) {
  process.stderr.write(`[set-up] ${message}\n`);
}

/** Path of a program of a locked dependency, by its file inside node_modules. */
export function dependency(...segments) {
  return join(root, 'node_modules', ...segments);
}

/** Runs a program from the repository root; its stdout goes to our stderr. Returns its exit code. */
export function runQuietly(command, args, environment = {}) {
  const child = spawnSync(command, args, {
    cwd: root,
    env: {...process.env, ...environment},
    stdio: ['ignore', 2, 2],
  });
  if (child.error) throw new SetUpError(`${command} cannot be started: ${child.error.message}`);
  return child.status ?? 1;
}

/** Whether a program can be started at all. */
export function isOnPath(command) {
  return spawnSync(command, ['--version'], {stdio: 'ignore'}).error === undefined;
}

/** Every file under the given paths, sorted; paths that are missing count as empty. `keep` sees `/`-separated names. */
export function listFiles(paths, keep = () => true) {
  const files = [];
  const visit = (path) => {
    if (!existsSync(path)) return;
    if (!statSync(path).isDirectory()) {
      if (keep(relative(root, path).split(sep).join('/'))) files.push(path);
      return;
    }
    for (const entry of readdirSync(path).sort()) visit(join(path, entry));
  };
  for (const path of paths) visit(join(root, path));
  return files;
}

/** One hash over names and contents of files, and over whatever else the result depends on. */
export function hashOf(files, ...facts) {
  const hash = createHash('sha256');
  for (const fact of facts) hash.update(`${fact}\0`);
  for (const file of files) {
    hash.update(`${relative(root, file)}\0`);
    hash.update(readFileSync(file));
    hash.update('\0');
  }
  return hash.digest('hex');
}

/** Whether the stamp says that this very input was worked off before. */
export function isStamped(stamp, hash) {
  try {
    return readFileSync(stamp, 'utf8').trim() === hash;
  } catch {
    return false;
  }
}

export function writeStamp(stamp, hash) {
  mkdirSync(dirname(stamp), {recursive: true});
  writeFileSync(stamp, `${hash}\n`);
}

/** Seconds since `start` (from performance.now()), for progress lines. */
export function secondsSince(start) {
  return `${((performance.now() - start) / 1000).toFixed(1)} s`;
}
