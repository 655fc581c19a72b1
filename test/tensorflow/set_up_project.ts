/** A user's project in a folder of its own, the command line in a process of its own, and TensorFlow where it lies already. */
import {spawn, spawnSync} from 'node:child_process';
import {mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {defaultCache} from '../../src/tensorflow/find_folder.js';
import {unpackHeaders, withWheel} from '../../src/tensorflow/wheel.js';
import {TENSORFLOW_VERSION, tensorflowFolder} from '../../scripts/tensorflow_folder.cjs';

export const root = join(__dirname, '..', '..');
const cli = join(root, 'dist', 'cjs', 'src', 'cli', 'main.js');

/** Names with blanks and beyond ASCII: no shell and no encoding may stand in between. */
const PREFIX = 'sage pröjekt-';

export interface Project {
  readonly folder: string;
  /** Where the set-up puts TensorFlow unless told otherwise. */
  readonly prepared: string;
  remove(): void;
}

/** A folder with package.json, this package and tfjs-node. */
export function makeProject(): Project {
  const folder = mkdtempSync(join(tmpdir(), PREFIX));
  writeFileSync(join(folder, 'package.json'), '{"private": true}');
  const modules = join(folder, 'node_modules');
  mkdirSync(modules);
  symlinkSync(root, join(modules, 'tfjs-sage-attention'));
  symlinkSync(join(root, 'node_modules', '@tensorflow'), join(modules, '@tensorflow'));
  return {
    folder,
    prepared: join(folder, '.sage-tensorflow'),
    remove: () => rmSync(folder, {recursive: true, force: true}),
  };
}

export interface Outcome {
  readonly code: number | null;
  readonly signal: string | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** The environment without what a developer may have set for this package. */
function environment(changes: NodeJS.ProcessEnv): NodeJS.ProcessEnv {
  const kept = Object.entries(process.env).filter(
    ([name]) => !/^(SAGE_|CXX$|NODE_OPTIONS$)/.test(name),
  );
  return {...Object.fromEntries(kept), TF_CPP_MIN_LOG_LEVEL: '2', ...changes};
}

/** Node with arguments in a folder. */
export function node(
  folder: string,
  args: readonly string[],
  env: NodeJS.ProcessEnv = {},
): Outcome {
  const child = spawnSync(process.execPath, args, {
    cwd: folder,
    encoding: 'utf8',
    env: environment(env),
    timeout: 120_000,
  });
  return {code: child.status, signal: child.signal, stdout: child.stdout, stderr: child.stderr};
}

/**
 * `setup-tensorflow` in a project.
 * @param killAt Ended without warning as soon as its progress says this.
 */
export function setUp(
  {folder}: Project,
  args: readonly string[],
  {env = {}, killAt}: {env?: NodeJS.ProcessEnv; killAt?: string} = {},
): Promise<Outcome> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [cli, 'setup-tensorflow', ...args], {
      cwd: folder,
      env: environment(env),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
      if (killAt !== undefined && stderr.includes(killAt)) child.kill('SIGKILL');
    });
    child.on('close', (code, signal) => resolve({code, signal, stdout, stderr}));
  });
}

/** The wheel that the tests' folder was made from. */
export function cachedWheel(): string {
  const folder = join(defaultCache(), 'wheels');
  const prefix = `tensorflow_cpu-${TENSORFLOW_VERSION}-`;
  const name = readdirSync(folder).find((file) => file.startsWith(prefix) && file.endsWith('.whl'));
  if (name === undefined) throw new Error(`no ${prefix}*.whl in ${folder}`);
  return join(folder, name);
}

/** A folder as `pip install` leaves it, with the libraries of the tests' folder. */
export async function makeSitePackages(
  folder: string,
  version = TENSORFLOW_VERSION,
): Promise<string> {
  const site = join(folder, 'site-packages');
  const tensorflow = join(site, 'tensorflow');
  mkdirSync(tensorflow, {recursive: true});
  for (const name of ['libtensorflow_cc.so.2', 'libtensorflow_framework.so.2']) {
    symlinkSync(join(tensorflowFolder, 'tensorflow', name), join(tensorflow, name));
  }
  await withWheel(cachedWheel(), (wheel) => unpackHeaders(wheel, join(tensorflow, 'include')));
  const info = join(site, `tensorflow_cpu-${version}.dist-info`);
  mkdirSync(info);
  writeFileSync(join(info, 'METADATA'), `Name: tensorflow_cpu\nVersion: ${version}\n`);
  writeFileSync(join(info, 'WHEEL'), 'Tag: cp311-cp311-manylinux_2_27_x86_64\n');
  return site;
}

/**
 * A compiler that makes nothing of its own: the link gives the binding of the tests' folder, which was compiled from the same
 * sources. For tests of everything around the compiler.
 */
export function makeQuickCompiler(folder: string): string {
  const path = join(folder, 'quick compiler');
  const binding = join(tensorflowFolder, 'tfjs_binding.node');
  const script = `#!/bin/sh
[ "$1" = --version ] && exit 0
for last; do :; done
case " $* " in *" -shared "*) exec cp '${binding}' "$last" ;; *) : > "$last" ;; esac
`;
  writeFileSync(path, script, {mode: 0o755});
  return path;
}
