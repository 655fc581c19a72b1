/** ONNX Runtime beside a native engine that is held to AVX2. */
import {existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {isHeldToAvx2, ortHeldToAvx2, withoutAvx512} from '../../src/cli/bench/held_to_avx2.js';
import {configureSageAttention} from '../../src/index.js';

const ASKS = '0f01d089c048c1e220';
const code = (...parts: string[]): Buffer => Buffer.from(parts.join(''), 'hex');

it('answers both questions, and nothing else', () => {
  const changed = withoutAvx512(code('90', ASKS, '0f01d0', ASKS, 'c3'));
  expect(changed?.toString('hex')).toBe('90b80700000048c1e2200f01d0b80700000048c1e220c3');
});

it.each([0, 1, 3])('leaves a library alone that asks %i times', (times) => {
  expect(withoutAvx512(code('90', ASKS.repeat(times)))).toBeNull();
});

it('follows the configuration', () => {
  const before = configureSageAttention();
  try {
    configureSageAttention({isa: 'avx2'});
    expect(isHeldToAvx2()).toBe(true);
    configureSageAttention({isa: 'auto'});
    expect(isHeldToAvx2()).toBe(false);
  } finally {
    configureSageAttention(before);
  }
});

if (process.platform === 'linux' && process.arch === 'x64') {
  it('copies what one platform needs, once, and leaves the installed library as it is', () => {
    const peers = mkdtempSync(join(tmpdir(), 'sage-peers-'));
    const own = join(peers, 'node_modules', 'onnxruntime-node');
    const library = join('bin', 'napi-v6', 'linux', 'x64', 'libonnxruntime.so.1');
    const write = (path: string, data: string | Buffer): void => {
      mkdirSync(dirname(join(own, path)), {recursive: true});
      writeFileSync(join(own, path), data);
    };
    const original = code(ASKS, ASKS);
    try {
      write('package.json', '{"version": "1.2.3"}');
      write(join('dist', 'index.js'), '');
      write(library, original);
      write(join('bin', 'napi-v6', 'win32', 'x64', 'onnxruntime.dll'), 'large');
      const folder = ortHeldToAvx2(peers) ?? '';
      const copy = join(folder, 'node_modules', 'onnxruntime-node');
      expect(readFileSync(join(copy, library))).toEqual(withoutAvx512(original));
      expect(readFileSync(join(own, library))).toEqual(original);
      expect(existsSync(join(copy, 'dist', 'index.js'))).toBe(true);
      expect(existsSync(join(copy, 'bin', 'napi-v6', 'win32'))).toBe(false);
      write(library, code(ASKS));
      expect(ortHeldToAvx2(peers)).toBe(folder);
      rmSync(folder, {recursive: true});
      expect(ortHeldToAvx2(peers)).toBeNull();
    } finally {
      rmSync(peers, {recursive: true});
    }
  });
}
