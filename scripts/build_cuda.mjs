// The native addon with CUDA kernels for every supported architecture, and what each part costs:
//
//   node scripts/build_cuda.mjs                        build/cuda-release/sage_attention.node
//   node scripts/build_cuda.mjs --architectures 80-real,90-real,80-virtual
//   node scripts/build_cuda.mjs --compare              also without CUDA, and for developers' architectures alone
//   node scripts/build_cuda.mjs --parallel 1           compilers at once (default: one per processor)
//
// Prints a Markdown table of the builds (architectures, seconds, bytes) and one of the release build's CUDA sources by
// folder: their share of the addon and of the compilers' time. Fails when nvcc 12 or later is missing. Times mean
// something for a first build of a folder only, and without a compiler cache.
import {spawnSync} from 'node:child_process';
import {existsSync, readFileSync, statSync} from 'node:fs';
import {availableParallelism} from 'node:os';
import {basename, dirname, join} from 'node:path';
import {parseArgs} from 'node:util';
import {dependency, root, say} from './set_up/workspace.mjs';

// Machine code for each generation, and PTX of the oldest for those to come. What only one architecture has (sm_90a,
// sm_120f) the build adds for the sources that need it.
const release = ['80-real', '86-real', '89-real', '90-real', '120-real', '80-virtual'];
const development = ['80-real', '90-real', '80-virtual'];

/** nvcc from which on there is code for Blackwell's consumer GPUs, FP4 among it: 12.8. */
const BLACKWELL = 1208;

const {values} = parseArgs({
  options: {
    architectures: {type: 'string'},
    compare: {type: 'boolean', default: false},
    parallel: {type: 'string', default: String(availableParallelism())},
  },
});

/** As a number, 1208 for 12.8; null where there is none on the path or where CUDA's variables point. */
function nvccVersion() {
  const folders = [process.env.CUDA_PATH, process.env.CUDA_HOME, '/usr/local/cuda', '/opt/cuda'];
  const candidates = [
    process.env.CUDACXX,
    'nvcc',
    ...folders.filter(Boolean).map((folder) => join(folder, 'bin', 'nvcc')),
  ];
  for (const nvcc of candidates.filter(Boolean)) {
    const {status, stdout} = spawnSync(nvcc, ['--version'], {encoding: 'utf8'});
    const version = status === 0 ? /release (\d+)\.(\d+)/.exec(stdout) : null;
    if (version !== null) return Number(version[1]) * 100 + Number(version[2]);
  }
  return null;
}

/** Configures and builds one folder below build/; the addon's path, size and the seconds that it took. */
function build(name, definitions) {
  const folder = join(root, 'build', name);
  const cmakeJs = dependency('cmake-js', 'bin', 'cmake-js');
  const start = performance.now();
  for (const command of ['configure', 'build']) {
    const child = spawnSync(
      process.execPath,
      [
        ...[cmakeJs, command, '--log-level', 'error', '--out', folder],
        ...['--parallel', values.parallel],
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
  return {name, folder, addon, bytes: statSync(addon).size, seconds};
}

const megabytes = (bytes) => (bytes / 2 ** 20).toFixed(2);

const row = (...cells) => console.log(`| ${cells.join(' | ')} |`);

/** Objects of CUDA sources by folder below csrc/cuda, from ninja's log; none where another generator built. */
function sharesOf(folder) {
  const log = join(folder, '.ninja_log');
  if (!existsSync(log)) return [];
  const latest = new Map();
  for (const line of readFileSync(log, 'utf8').split('\n')) {
    const [start, end, , output] = line.split('\t');
    if (output?.endsWith('.cu.o')) latest.set(output, (Number(end) - Number(start)) / 1000);
  }
  const shares = new Map();
  for (const [output, seconds] of latest) {
    const file = join(folder, output);
    if (!existsSync(file)) continue;
    const part = basename(dirname(output));
    const share = shares.get(part) ?? {part, sources: 0, seconds: 0, bytes: 0};
    share.sources += 1;
    share.seconds += seconds;
    share.bytes += statSync(file).size;
    shares.set(part, share);
  }
  return [...shares.values()].sort((a, b) => b.seconds - a.seconds);
}

function releaseArchitectures() {
  const version = nvccVersion();
  if (version === null || version >= BLACKWELL) return release;
  say('nvcc is older than 12.8: no code for sm_120, FP4 is left out');
  return release.filter((architecture) => architecture !== '120-real');
}

const architectures = values.architectures?.split(',') ?? releaseArchitectures();
const builds = [];
if (values.compare) {
  builds.push({...build('cuda-none', ['SAGE_CUDA=OFF']), architectures: ['none']});
  builds.push({
    ...build('cuda-development', [
      'SAGE_CUDA=ON',
      `SAGE_CUDA_ARCHITECTURES=${development.join(';')}`,
    ]),
    architectures: development,
  });
}
const last = build('cuda-release', [
  'SAGE_CUDA=ON',
  `SAGE_CUDA_ARCHITECTURES=${architectures.join(';')}`,
]);
builds.push({...last, architectures});

row('build', 'architectures', 'addon, MiB', 'seconds');
row('---', '---', '---', '---');
for (const {name, architectures: list, bytes, seconds} of builds) {
  row(name, list.join(' '), megabytes(bytes), seconds.toFixed(0));
}
const shares = sharesOf(last.folder);
if (shares.length > 0) {
  console.log('');
  row('csrc/cuda', 'sources', 'objects, MiB', "compilers' seconds");
  row('---', '---', '---', '---');
  for (const {part, sources, bytes, seconds} of shares) {
    row(part, sources, megabytes(bytes), seconds.toFixed(0));
  }
}
console.log(last.addon);
