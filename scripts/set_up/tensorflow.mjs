// TensorFlow for the tests, in a folder outside the tree: made once by the package's own `setup-tensorflow`, again when
// that changed. A machine without what it needs (Python with pip, a compiler, a package index) runs the other tests.
import {spawnSync} from 'node:child_process';
import {existsSync} from 'node:fs';
import {join} from 'node:path';
import {TENSORFLOW_VERSION, tensorflowFolder} from '../tensorflow_folder.cjs';
import {hashOf, isStamped, listFiles, root, say, secondsSince, writeStamp} from './workspace.mjs';

/** What the set-up says where something is missing that is no fault of this package. */
const MISSING_HERE = [
  /there is no python3 .*$/m,
  /this Python has no pip.*$/m,
  /pip could not fetch .*$/m,
  /no C\+\+ compiler is on the path.*$/m,
  /node_api\.h is not found.*$/m,
  /TensorFlow's wheels bring .*$/m,
  /TensorFlow is built for glibc.*$/m,
];

/** Version of the tests' TensorFlow, the sources that make its folder, and tfjs-node's. */
function hashOfSources() {
  const sources = listFiles(['src/tensorflow', 'node_modules/@tensorflow/tfjs-node/binding']);
  return hashOf(sources, TENSORFLOW_VERSION, process.platform, process.arch);
}

/**
 * Prepares the folder.
 * @returns {{missing: string | null, failed: boolean}} `missing`: what this machine lacks, in one line.
 */
export function prepareTensorflow() {
  const stamp = `${tensorflowFolder}.stamp`;
  const hash = hashOfSources();
  const made = existsSync(join(tensorflowFolder, 'sage-tensorflow.json'));
  if (made && isStamped(stamp, hash)) return {missing: null, failed: false};
  const start = performance.now();
  say(`preparing TensorFlow ${TENSORFLOW_VERSION} for the tests in ${tensorflowFolder} ...`);
  const cli = join(root, 'dist', 'cjs', 'src', 'cli', 'main.js');
  const args = [
    cli,
    'setup-tensorflow',
    '--dir',
    tensorflowFolder,
    '--version',
    TENSORFLOW_VERSION,
  ];
  const child = spawnSync(process.execPath, args, {cwd: root, encoding: 'utf8'});
  if (child.status === 0) {
    writeStamp(stamp, hash);
    say(`TensorFlow prepared in ${secondsSince(start)}`);
    return {missing: null, failed: false};
  }
  const reason = MISSING_HERE.map((words) => words.exec(child.stderr)?.[0]).find(Boolean);
  if (reason === undefined) process.stderr.write(child.stderr);
  return {missing: reason ?? null, failed: true};
}
