/** Scripts in a process of their own, which the built package serves: what a process can do only once, or not survive. */
import {execFile} from 'node:child_process';
import {join} from 'node:path';
import {loadAddon} from '../../src/runtime/load_addon';
import {loadTensorflowSource} from './tensorflow_backend';

const ROOT = join(__dirname, '..', '..');

/** The CommonJS build; SAGE_BUILT names another folder of it. */
const BUILT = join(process.env['SAGE_BUILT'] ?? join(ROOT, 'dist', 'cjs'), 'src', 'index.js');

/** File of the addon that this process runs. */
export function addonPath(): string {
  const {attempts} = loadAddon();
  const path = attempts[attempts.length - 1]?.path;
  if (path == null) throw new Error('there is no native addon');
  return path;
}

const PRELUDE = () => `
const loadTensorflow = () => ${loadTensorflowSource()};
const loadPackage = () => require(${JSON.stringify(BUILT)});
const report = (answer) => process.stdout.write('\\nANSWER ' + JSON.stringify(answer) + '\\n');
`;

/**
 * Runs a CommonJS script that has `loadTensorflow()`, `loadPackage()` and `report(answer)`.
 * @returns What it reported.
 */
export async function runChild<T>(
  script: string,
  environment: NodeJS.ProcessEnv = {},
  nodeArguments: readonly string[] = [],
): Promise<T> {
  const {stdout, stderr, failure} = await new Promise<{
    stdout: string;
    stderr: string;
    failure: Error | null;
  }>((resolve) => {
    execFile(
      process.execPath,
      [...nodeArguments, '-e', PRELUDE() + script],
      {
        cwd: ROOT,
        env: {...process.env, SAGE_NATIVE_PATH: addonPath(), ...environment},
        maxBuffer: 2 ** 24,
      },
      (error, out, err) => resolve({stdout: out, stderr: err, failure: error}),
    );
  });
  const answer = /^ANSWER (.*)$/m.exec(stdout)?.[1];
  if (failure !== null || answer === undefined) {
    throw new Error(`the child failed: ${failure?.message}\n${stdout}\n${stderr}`);
  }
  return JSON.parse(answer) as T;
}
