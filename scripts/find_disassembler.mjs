// Where cuobjdump is that can print machine code: it calls nvdisasm, from beside itself or from the path, and some
// packages bring only one of the two. Shared by the scripts that read what the assembler made; no device needed.
//
//   node scripts/find_disassembler.mjs [PATH ...]   prints the first cuobjdump that works, those named before others
//
// Exit code 77 where there is none, with one line that says what is missing.
import {spawnSync} from 'node:child_process';
import {existsSync, realpathSync} from 'node:fs';
import {delimiter, dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';

const onPath = (name) =>
  (process.env.PATH ?? '')
    .split(delimiter)
    .map((folder) => join(folder, name))
    .find((path) => existsSync(path));

/** A program of the CUDA toolkit: on the path, beside nvcc, or where the toolkit is usually installed. */
export function findTool(name) {
  const nvcc = onPath('nvcc');
  const usual = [...(nvcc ? [dirname(nvcc)] : []), '/usr/local/cuda/bin', '/opt/cuda/bin'];
  return onPath(name) ?? usual.map((folder) => join(folder, name)).find((path) => existsSync(path));
}

const runs = (program) => spawnSync(program, ['--version']).status === 0;

/** {cuobjdump: path}, the first of `named` or else the toolkit's that works, or {missing: what to install}. */
export function findDisassembler(...named) {
  const found = [...named, findTool('cuobjdump')].filter((path) => path && runs(path));
  const cuobjdump = found.find((path) => {
    const folders = path.includes('/') ? [dirname(path), dirname(realpathSync(path))] : [];
    return folders.some((folder) => runs(join(folder, 'nvdisasm'))) || runs('nvdisasm');
  });
  if (cuobjdump !== undefined) return {cuobjdump};
  return {missing: found.length === 0 ? 'cuobjdump' : `nvdisasm beside ${found[0]}`};
}

if (process.argv[1] && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const {cuobjdump, missing} = findDisassembler(...process.argv.slice(2));
  console.log(cuobjdump ?? missing);
  process.exitCode = cuobjdump === undefined ? 77 : 0;
}
