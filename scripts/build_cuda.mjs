// The native addon with CUDA kernels for every supported architecture, and what each part costs:
//
//   node scripts/build_cuda.mjs                        build/cuda-release/sage_attention.node
//   node scripts/build_cuda.mjs --architectures 80-real,90-real,80-virtual
//   node scripts/build_cuda.mjs --compare              also without CUDA, and for developers' architectures alone
//
// Prints one line per build: architectures, seconds, bytes. Fails when nvcc 12 or later is missing.
import {spawnSync} from 'node:child_process';
import {existsSync, statSync} from 'node:fs';
import {availableParallelism} from 'node:os';
import {join} from 'node:path';
import {parseArgs} from 'node:util';
import {dependency, root} from './set_up/workspace.mjs';

// Machine code for each generation, and PTX of the oldest for those to come.
const release = '80-real;86-real;89-real;90-real;120-real;80-virtual';
const development = '80-real;90-real;80-virtual';

const {values} = parseArgs({
  options: {architectures: {type: 'string'}, compare: {type: 'boolean', default: false}},
});

/** Configures and builds one folder below build/; the addon's path, size and the seconds that it took. */
function build(name, definitions) {
  const folder = join(root, 'build', name);
  const cmakeJs = dependency('cmake-js', 'bin', 'cmake-js');
  const start = performance.now();
  for (const command of ['configure', 'build']) {
    const child = spawnSync(
      process.execPath,
      [
        cmakeJs,
        command,
        '--log-level',
        'error',
        '--out',
        folder,
        '--parallel',
        String(availableParallelism()),
        ...definitions.map((definition) => `--CD${definition}`),
      ],
      {cwd: root, stdio: ['ignore', 2, 'inherit']},
    );
    if (child.status !== 0) {
      console.error(`${name}: ${command} failed (messages are above)`);
      process.exit(1);
    }
  }
  const addon = join(folder, 'Release', 'sage_attention.node');
  if (!existsSync(addon)) {
    console.error(`${name}: the build left no addon`);
    process.exit(1);
  }
  const seconds = (performance.now() - start) / 1000;
  return {addon, bytes: statSync(addon).size, seconds};
}

function report(name, architectures, {addon, bytes, seconds}) {
  const megabytes = (bytes / 2 ** 20).toFixed(2);
  console.log(
    `${name.padEnd(14)} ${megabytes.padStart(6)} MiB ${seconds.toFixed(0).padStart(5)} s  ${architectures}`,
  );
  return addon;
}

const architectures = values.architectures?.replaceAll(',', ';') ?? release;
if (values.compare) {
  report('without CUDA', '-', build('cuda-none', ['SAGE_CUDA=OFF']));
  report(
    'development',
    development,
    build('cuda-development', ['SAGE_CUDA=ON', `SAGE_CUDA_ARCHITECTURES=${development}`]),
  );
}
const addon = report(
  'release',
  architectures,
  build('cuda-release', ['SAGE_CUDA=ON', `SAGE_CUDA_ARCHITECTURES=${architectures}`]),
);
console.log(addon);
