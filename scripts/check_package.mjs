// Packs the main and the platform package, installs both beside tfjs in an empty folder without install scripts, and
// uses them there as users do: ES modules, CommonJS, TypeScript, the command line. `--keep` leaves the folder behind.
import {spawnSync} from 'node:child_process';
import {cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {npm, packMain, packPlatform, readManifest} from './packing.mjs';
import {dependency, root, say, SetUpError} from './set_up/workspace.mjs';

const {devDependencies} = readManifest(root);
const tfjs = ['tfjs-core', 'tfjs-backend-cpu', 'tfjs-backend-wasm'].map((name) => {
  const scoped = `@tensorflow/${name}`;
  return `${scoped}@${devDependencies[scoped]}`;
});

/** What a clean user's environment would not set. */
const environment = {...process.env};
for (const name of Object.keys(environment)) if (name.startsWith('SAGE_')) delete environment[name];

function run(directory, command, args) {
  const options = {cwd: directory, encoding: 'utf8', env: environment, maxBuffer: 1 << 26};
  const child = spawnSync(command, args, {...options, stdio: ['ignore', 'pipe', 2]});
  if (child.status !== 0) {
    throw new SetUpError(
      `${command} ${args.join(' ')}: exit code ${child.status}\n${child.stdout}`,
    );
  }
  return child.stdout.trimEnd();
}

function install(directory) {
  writeFileSync(join(directory, 'package.json'), JSON.stringify({private: true}));
  const tarballs = [
    packMain(join(directory, 'tarballs')),
    packPlatform(
      join(root, 'npm', `${process.platform}-${process.arch}`),
      join(directory, 'tarballs'),
    ),
  ];
  for (const tarball of tarballs) {
    say(`packed ${tarball.split('/').pop()}: ${(statSync(tarball).size / 2 ** 20).toFixed(2)} MiB`);
  }
  const flags = ['--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'];
  npm(['install', ...flags, ...tarballs, ...tfjs], {cwd: directory, env: environment});
}

function useAsModules(directory, engine) {
  for (const file of ['smoke.mjs', 'smoke.cjs']) {
    console.log(run(directory, process.execPath, [file, engine]).replace(/^/gm, `${file}: `));
  }
}

function useAsTypeScript(directory) {
  for (const type of ['module', 'commonjs']) {
    const folder = join(directory, `typescript-${type}`);
    mkdirSync(folder);
    writeFileSync(join(folder, 'package.json'), JSON.stringify({private: true, type}));
    cpSync(join(root, 'scripts', 'consumer', 'smoke.ts'), join(folder, 'smoke.ts'));
    const tsc = dependency('typescript', 'bin', 'tsc');
    const options = ['--strict', '--skipLibCheck', '--target', 'es2022', '--module', 'node16'];
    run(folder, process.execPath, [tsc, ...options, 'smoke.ts']);
    run(folder, process.execPath, ['smoke.js']);
    console.log(`smoke.ts, type ${type}: compiled and run`);
  }
}

function useCommandLine(directory) {
  const file = 'node_modules/tfjs-sage-attention/models/gpt2/js-gpt/prompts/matrix.js';
  const args = ['--no-install', 'tfjs-sage-attention', 'demo', '--file', file, '--json'];
  const {schema, rows} = JSON.parse(run(directory, 'npx', args));
  if (schema !== 1 || rows.length < 3)
    throw new SetUpError(`demo: ${rows.length} rows, schema ${schema}`);
  const elsewhere = rows.filter(
    ({precision, engine}) => precision !== 'tfjs' && engine !== 'native',
  );
  if (elsewhere.length > 0) {
    throw new SetUpError(
      `demo: not by the native engine: ${elsewhere.map((row) => row.precision)}`,
    );
  }
  for (const row of rows)
    console.log(`demo: ${row.precision}: ${row.bitsPerByte.toFixed(4)} bits a byte`);
}

/** The platform package taken away: the TypeScript engine must serve, and say why. */
function useWithoutAddon(directory) {
  rmSync(join(directory, 'node_modules', '@tfjs-sage-attention'), {recursive: true});
  useAsModules(directory, 'typescript');
}

const directory = mkdtempSync(join(tmpdir(), 'sage-package-'));
const keep = process.argv.includes('--keep');
try {
  install(directory);
  if (existsSync(join(directory, 'node_modules', 'tfjs-sage-attention', 'build'))) {
    throw new SetUpError('The main package carries a build folder.');
  }
  for (const file of ['attend.cjs', 'smoke.mjs', 'smoke.cjs']) {
    cpSync(join(root, 'scripts', 'consumer', file), join(directory, file));
  }
  useAsModules(directory, 'native');
  useAsTypeScript(directory);
  useCommandLine(directory);
  useWithoutAddon(directory);
} catch (error) {
  if (!(error instanceof SetUpError)) throw error;
  say(error.message);
  process.exitCode = 1;
} finally {
  if (keep) say(`left in ${directory}`);
  else rmSync(directory, {recursive: true, force: true});
}
