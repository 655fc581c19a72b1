/**
 * What the assembler makes of the CUDA kernels, counted without a device: the scripts fail where a kernel issues more
 * per score than it has reached, spills more, or lacks the products it is for.
 */
import {spawnSync} from 'node:child_process';
import {join} from 'node:path';

const root = join(__dirname, '..', '..');
/** The disassembler: one that is named, or the system's, or the one that an interpreter's triton brings. */
const OF_TRITON =
  "import triton; print(triton.__path__[0] + '/backends/nvidia/bin/cuobjdump', end='')";
const python = process.env['SAGE_TEST_TORCH'] ?? 'python3';
const named = [
  process.env['SAGE_TEST_CUOBJDUMP'] ?? '',
  spawnSync(python, ['-c', OF_TRITON], {encoding: 'utf8'}).stdout ?? '',
].filter((path) => path !== '');
const search = spawnSync(
  process.execPath,
  [join(root, 'scripts', 'find_disassembler.mjs'), ...named],
  {encoding: 'utf8'},
);
const cuobjdump = search.status === 0 ? search.stdout.trim() : '';
const compiler = spawnSync('nvcc', ['--version']).status === 0;

const missing = !compiler ? 'nvcc' : search.status === 77 ? search.stdout.trim() : null;
const suite = missing === null ? describe : describe.skip;

/** A script's exit code and what it printed. */
function run(script: string, ...args: string[]): {status: number | null; output: string} {
  const child = spawnSync(
    process.execPath,
    [join(root, 'scripts', script), '--cuobjdump', cuobjdump, ...args],
    {encoding: 'utf8'},
  );
  return {status: child.status, output: child.stdout + child.stderr};
}

suite(missing === null ? 'machine code' : `machine code (no ${missing} here)`, () => {
  it('of the FP4 kernels keeps to its limits', () => {
    const {status, output} = run('sass_fp4.mjs', '--format', 'fp4');
    // nvcc before 12.8 does not know these products.
    if (status !== 77) expect({status, output}).toMatchObject({status: 0});
    else expect(output).toContain('older than 12.8');
  }, 300_000);

  it('of the int8 kernels keeps to its limits', () => {
    expect(run('sass_int8.mjs', '--source', 'attend_half')).toMatchObject({status: 0});
  }, 300_000);
});
