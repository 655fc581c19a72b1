/** The wheel of a TensorFlow version: from the cache, or by `pip download` into it. No Python code of it is ever run. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import {join} from 'node:path';
import {sha256OfFile} from './file_records.js';
import {lastLines, runProgram, type ProgramResult} from './run_program.js';
import {setUpFailed} from './tensorflow_errors.js';

export interface WheelFile {
  readonly path: string;
  /** Hexadecimal. */
  readonly sha256: string;
  /** Whether it was fetched now. */
  readonly fetched: boolean;
}

export interface WheelRequest {
  /** Name on the package index, such as `tensorflow-cpu`. */
  readonly project: string;
  readonly version: string;
  /** Folder that keeps wheels between runs. */
  readonly cache: string;
  readonly note: (text: string) => void;
  /** Whether pip may draw its progress bar on stderr. */
  readonly showProgress: boolean;
}

/** Platform tags of wheels, newest first; pip takes the first that exists. */
const PLATFORM_TAGS = [
  'manylinux_2_28',
  'manylinux_2_27',
  'manylinux_2_17',
  'manylinux2014',
  'manylinux1',
];

/** `process.arch` as wheels name it. */
export const WHEEL_ARCH: Readonly<Record<string, string>> = {x64: 'x86_64', arm64: 'aarch64'};

/** One Python of the range that TensorFlow builds for: any will do, and asking by name suits every Python here. */
const PYTHON_TAG = ['--python-version', '3.11', '--implementation', 'cp'];

const PYTHONS = ['python3', 'python'];

/**
 * @throws SageAttentionError `tensorflow-set-up-failed` with what pip said.
 */
export async function findWheel(request: WheelRequest): Promise<WheelFile> {
  return (await cachedWheel(request)) ?? (await downloadWheel(request));
}

/** File names have `_` where projects have `-`. */
const prefixOf = ({project, version}: WheelRequest): string =>
  `${project.replace(/[-.]/g, '_')}-${version}-`;

const checksumFile = (wheel: string): string => `${wheel}.sha256`;

async function cachedWheel(request: WheelRequest): Promise<WheelFile | null> {
  const {cache, note} = request;
  if (!existsSync(cache)) return null;
  const arch = WHEEL_ARCH[process.arch] ?? process.arch;
  const name = readdirSync(cache).find(
    (file) => file.startsWith(prefixOf(request)) && file.endsWith(`${arch}.whl`),
  );
  if (name === undefined) return null;
  const path = join(cache, name);
  const expected = existsSync(checksumFile(path))
    ? readFileSync(checksumFile(path), 'utf8').trim()
    : '';
  const sha256 = await sha256OfFile(path);
  if (sha256 === expected) return {path, sha256, fetched: false};
  note(`${path} does not match its checksum; it is fetched again`);
  rmSync(path, {force: true});
  return null;
}

async function downloadWheel(request: WheelRequest): Promise<WheelFile> {
  const {project, version, cache, showProgress} = request;
  mkdirSync(cache, {recursive: true});
  const draft = mkdtempSync(join(cache, '.download-'));
  try {
    const arch = WHEEL_ARCH[process.arch] ?? process.arch;
    const platforms = PLATFORM_TAGS.flatMap((tag) => ['--platform', `${tag}_${arch}`]);
    const what = [`${project}==${version}`, '--no-deps', '--only-binary=:all:', '--dest', draft];
    const download = (...extra: string[]): Promise<ProgramResult> =>
      runPip(['download', '--disable-pip-version-check', ...what, ...extra], showProgress);
    let result = await download(...PYTHON_TAG, ...platforms);
    // An index may have this version for the Python that runs here only.
    if (result.status !== 0) result = await download();
    const name = readdirSync(draft).find((file) => file.endsWith('.whl'));
    if (result.status !== 0 || name === undefined) throw downloadFailed(request, result);
    const sha256 = await sha256OfFile(join(draft, name));
    const path = join(cache, name);
    // The checksum first: a wheel without one is fetched again, never trusted.
    writeFileSync(checksumFile(path), `${sha256}\n`);
    renameSync(join(draft, name), path);
    return {path, sha256, fetched: true};
  } finally {
    rmSync(draft, {recursive: true, force: true});
  }
}

async function runPip(args: readonly string[], showProgress: boolean): Promise<ProgramResult> {
  for (const python of PYTHONS) {
    const result = await runProgram(python, ['-m', 'pip', ...args], {showProgress});
    if (!result.missing) return result;
  }
  throw setUpFailed(
    `there is no ${PYTHONS.join(' or ')} on the path, which pip needs to fetch the wheel.`,
    `Install it (Debian, Ubuntu: apt-get install python3-pip), or fetch the wheel elsewhere and give it as --wheel FILE.`,
  );
}

function downloadFailed({project, version}: WheelRequest, result: ProgramResult) {
  const elsewhere = `pip download --no-deps ${project}==${version}`;
  if (/No module named pip/.test(result.stderr)) {
    return setUpFailed(
      'this Python has no pip, which fetches the wheel.',
      `Install it (Debian, Ubuntu: apt-get install python3-pip), or run ${elsewhere} elsewhere and give the file as --wheel FILE.`,
    );
  }
  return setUpFailed(
    `pip could not fetch ${project} ${version}:\n${lastLines(result)}`,
    `Check the version and the network, or run ${elsewhere} elsewhere and give the file as --wheel FILE.`,
  );
}
