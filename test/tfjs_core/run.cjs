// Runs tfjs-core's own tests on backend 'tensorflow', on the TensorFlow that SAGE_TENSORFLOW_DIR names or the tests' own, with
// this package loaded (`--without`: not loaded). Names that tfjs-node itself leaves out are left out. The exit code is 0
// only if nothing failed that does not fail without this package (known_failures.json).
//   npm run test:tfjs-core -- [--without] [a pattern of names]
const {readFileSync, rmSync} = require('node:fs');
const {join} = require('node:path');
const {tensorflowFolder} = require('../../scripts/tensorflow_folder.cjs');
const {buildSync} = require('esbuild');
const Jasmine = require('jasmine');

const args = process.argv.slice(2);
const without = args.includes('--without');
const pattern = new RegExp(args.find((argument) => !argument.startsWith('--')) ?? '');
const known = JSON.parse(readFileSync(join(__dirname, 'known_failures.json'), 'utf8'));

process.env.TF_CPP_MIN_LOG_LEVEL ??= '2';
process.env.SAGE_TENSORFLOW_DIR = tensorflowFolder;
require('../../dist/cjs/src/tensorflow/load.js');
const tf = require('@tensorflow/tfjs-node');
if (!without) require('../../dist/cjs/src/index.js');

/** Substrings of test names that tfjs-node's own run leaves out. */
function leftOut() {
  const source = readFileSync(require.resolve('@tensorflow/tfjs-node/dist/run_tests.js'), 'utf8');
  const list = /IGNORE_LIST = (\[[\s\S]*?\]);/.exec(source)?.[1];
  if (list === undefined) throw new Error('tfjs-node has no IGNORE_LIST where it is expected.');
  return new Function(`return ${list}`)();
}

function bundle() {
  // Here, so that what is left out of the bundle is found.
  const outfile = join(__dirname, 'node_modules', `.bundle-${process.pid}.cjs`);
  buildSync({
    entryPoints: [join(__dirname, 'entry.cjs')],
    outfile,
    bundle: true,
    platform: 'node',
    // Without it, the package's `sideEffects` field drops nearly all tests.
    ignoreAnnotations: true,
    external: ['jasmine', 'jasmine-core', '@tensorflow/tfjs-node'],
    logLevel: 'error',
  });
  return outfile;
}

const runner = new Jasmine();
runner.loadConfig({random: false});
const file = bundle();
require(file);
rmSync(file);
const ignored = leftOut();
runner.env.configure({
  specFilter: (spec) => {
    const name = spec.getFullName();
    return pattern.test(name) && !ignored.some((part) => name.includes(part));
  },
});

const counts = {passed: 0, failed: 0, pending: 0, excluded: 0};
const failures = [];
runner.clearReporters();
runner.addReporter({
  specDone({status, fullName, failedExpectations}) {
    counts[status] = (counts[status] ?? 0) + 1;
    if (status === 'failed')
      failures.push({name: fullName, message: failedExpectations[0]?.message ?? ''});
  },
  suiteDone({fullName, failedExpectations = []}) {
    if (failedExpectations.length > 0)
      failures.push({name: fullName, message: failedExpectations[0].message});
  },
});
runner.exitOnCompletion = false;
runner.execute().then(() => {
  const fresh = failures.filter(({name}) => !known.includes(name));
  for (const {name, message} of failures) {
    const [line = ''] = message.split('\n');
    console.log(`${known.includes(name) ? 'known' : 'NEW'}: ${name}: ${line.slice(0, 200)}`);
  }
  const {passed, failed, pending, excluded} = counts;
  const what = without ? 'without this package' : 'with this package loaded';
  console.log(
    `tfjs-core on TensorFlow ${tf.backend().binding.TF_Version}, ${what}: ${passed} passed, ${failed} failed ` +
      `(${failed - fresh.length} known), ${pending} pending, ${excluded} left out`,
  );
  process.exitCode = fresh.length === 0 && passed > 0 ? 0 : 1;
});
