/**
 * Peers beside a native engine that is held to AVX2 (SAGE_CPU_ISA=avx2): held to it too, as on a machine without AVX-512.
 * PyTorch has a variable for that, which its script sets. ONNX Runtime has none: it asks which registers the operating
 * system saves (xgetbv) and takes AVX-512 where it may. In a copy of its library that answer is replaced by that of a
 * machine without.
 */
import {cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {join, relative, sep} from 'node:path';
import {configureSageAttention} from '../../index.js';

/** Whether the native engine is told to do without what the processor may have beyond AVX2. */
export const isHeldToAvx2 = (): boolean => configureSageAttention().isa === 'avx2';

/** xgetbv; mov eax, eax; shl rdx, 32: how the compiled library joins the halves of the answer. */
const QUESTION = Buffer.from('0f01d089c048c1e220', 'hex');
/** mov eax, 7: x87, SSE and AVX registers are saved, those of AVX-512 and AMX are not. As long as the first two. */
const ANSWER = Buffer.from('b807000000', 'hex');
/** In its kernels' choice, and in what it tells others of the processor. */
const QUESTIONS = 2;

/** The library with that answer; null where it does not ask as it is known to. */
export function withoutAvx512(library: Buffer): Buffer | null {
  const changed = Buffer.from(library);
  let found = 0;
  for (let at = 0; (at = changed.indexOf(QUESTION, at)) >= 0; found++) ANSWER.copy(changed, at);
  return found === QUESTIONS ? changed : null;
}

/**
 * A folder from which onnxruntime-node is loaded held to AVX2; null where there is no such way.
 *
 * @param peers The folder where it is installed.
 */
export function ortHeldToAvx2(peers: string): string | null {
  if (process.platform !== 'linux' || process.arch !== 'x64') return null;
  const name = 'onnxruntime-node';
  const from = join(peers, 'node_modules', name);
  const {version} = JSON.parse(readFileSync(join(from, 'package.json'), 'utf8')) as {
    version: string;
  };
  // Below node_modules, so that what it depends on is found, and ignored by git.
  const folder = join(peers, 'node_modules', '.held-to-avx2', version);
  const done = join(folder, 'complete');
  if (existsSync(done)) return folder;
  const binaries = join('bin', 'napi-v6', 'linux', 'x64');
  const library = withoutAvx512(readFileSync(join(from, binaries, 'libonnxruntime.so.1')));
  if (library === null) return null;
  const to = join(folder, 'node_modules', name);
  rmSync(folder, {recursive: true, force: true});
  mkdirSync(to, {recursive: true});
  const isNeeded = (path: string): boolean => {
    const [top] = path.split(sep);
    return top !== 'bin' || binaries.startsWith(path) || path.startsWith(binaries);
  };
  cpSync(from, to, {recursive: true, filter: (path) => isNeeded(relative(from, path))});
  writeFileSync(join(to, binaries, 'libonnxruntime.so.1'), library);
  // Written last: without it an earlier attempt was cut off.
  writeFileSync(done, '');
  return folder;
}
