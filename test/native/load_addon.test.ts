/** Loading the addon that was built, and files that are like it but must not be loaded. */
import {chmodSync, copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {findBinaryFault} from '../../src/runtime/check_binary.js';
import {PROBLEM_VERSION, PROBLEM_WORDS} from '../../src/problem.js';
import {
  addonCandidates,
  loadAddon,
  probeInChild,
  tryCandidates,
  type LoadAttempt,
} from '../../src/runtime/load_addon.js';

const {addon, attempts} = loadAddon();
if (addon === null) throw new Error('build/Release holds no addon: npm run build:native');
const file = attempts.at(-1)!.path!;
const bytes = readFileSync(file);

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'sage-addon-'));
});
afterAll(() => {
  rmSync(folder, {recursive: true});
});

function write(name: string, contents: Uint8Array | string): string {
  const path = join(folder, name);
  writeFileSync(path, contents);
  return path;
}

/** What becomes of a file that SAGE_NATIVE_PATH names. */
function attempt(path: string): LoadAttempt {
  const message = 'there is no such file';
  return tryCandidates([{source: 'SAGE_NATIVE_PATH', path, message}]).attempts[0]!;
}

const onLinux = process.platform === 'linux' ? test : test.skip;

test('the built addon loads once, from this package', () => {
  expect(loadAddon().addon).toBe(addon);
  expect(attempts.at(-1)).toMatchObject({ok: true, code: 'loaded'});
  expect(addon.capabilities()).toMatchObject({
    version: (JSON.parse(readFileSync(join(__dirname, '../../package.json'), 'utf8')) as {version: string})
      .version,
    problemVersion: PROBLEM_VERSION,
    problemWords: PROBLEM_WORDS,
  });
});

test('the places are tried in their order', () => {
  const sources = addonCandidates().map(({source}) => source);
  const forced = process.env['SAGE_NATIVE_PATH'] ? ['SAGE_NATIVE_PATH'] : [];
  expect(sources).toEqual([...forced, 'build/Release', 'platform package']);
});

test('a copy somewhere else loads as well', () => {
  const copy = join(folder, 'copy.node');
  copyFileSync(file, copy);
  expect(attempt(copy)).toMatchObject({ok: true, path: copy});
});

onLinux.each([0, 1, 63, 64, 4096, 0.25, 0.5, 0.9, -1])(
  'truncated to %d (bytes, or the part): refused before it is loaded',
  (amount) => {
    const length = amount < 0 ? bytes.length - 1 : amount % 1 === 0 ? amount : amount * bytes.length;
    const path = write(`truncated_${amount}.node`, bytes.subarray(0, Math.floor(length)));
    expect(attempt(path)).toMatchObject({ok: false, code: 'damaged'});
  },
);

onLinux('for another processor: refused before it is loaded', () => {
  const foreign = Uint8Array.from(bytes);
  new DataView(foreign.buffer).setUint16(18, process.arch === 'x64' ? 183 : 62, true);
  const result = attempt(write('foreign.node', foreign));
  expect(result).toMatchObject({ok: false, code: 'wrong-cpu'});
  expect(result.message).toContain(process.arch === 'x64' ? 'arm64' : 'x64');
});

test('what is no addon of this package', () => {
  expect(attempt(write('text.node', 'hello'))).toMatchObject({ok: false});
  expect(attempt(write('addon.js', 'throw new Error("executed")'))).toMatchObject({
    code: 'unsuitable',
  });
  expect(attempt(join(folder, 'nothing.node'))).toMatchObject({
    code: 'not-found',
    message: 'there is no such file',
  });
  expect(attempt('build/Release/sage_attention.node')).toMatchObject({
    code: 'unsuitable',
    message: 'expected an absolute path',
  });
  // A folder, and a file that nobody may read.
  expect(attempt(`${folder}/../${folder.split('/').pop()}`)).toMatchObject({ok: false});
});

test('damage that its headers do not show: the loader says no, or the child process ends', () => {
  const hollow = Uint8Array.from(bytes);
  // Everything between the headers and the section table is gone.
  hollow.fill(0, 4096, bytes.length - 8192);
  const path = write('hollow.node', hollow);
  if (process.platform === 'linux') {
    expect(findBinaryFault(hollow, process.platform, process.arch)).toBeNull();
  }
  const result = probeInChild(path);
  expect(result.ok).toBe(false);
  expect(result.message).not.toBe('');
});

test('the built addon passes in a child process, with every instruction set', () => {
  const result = probeInChild(file);
  const {available} = addon.capabilities().isa;
  expect(result).toMatchObject({
    ok: true,
    message: `loads and computes with ${available.join(', ')}`,
    capabilities: {isa: {available}},
  });
});

onLinux('a truncated addon ends the child process and not this one', () => {
  const path = write('cut.node', bytes.subarray(0, Math.floor(bytes.length / 2)));
  chmodSync(path, 0o755);
  const result = probeInChild(path);
  expect(result.ok).toBe(false);
  expect(result.capabilities).toBeNull();
});

test('a missing file is an answer too', () => {
  expect(probeInChild(join(folder, 'nothing.node'))).toMatchObject({ok: false});
});
