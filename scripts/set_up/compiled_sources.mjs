// Step 3: dist/esm and dist/cjs from the TypeScript sources, when these changed since the last build.
import {spawn} from 'node:child_process';
import {cpSync, existsSync, mkdirSync, readFileSync, rmSync} from 'node:fs';
import {join} from 'node:path';
import {turnIntoEsModules} from './es_modules.mjs';
import {
  dependency,
  hashOf,
  isStamped,
  listFiles,
  root,
  say,
  secondsSince,
  SetUpError,
  writeStamp,
} from './workspace.mjs';

const forms = ['esm', 'cjs'];

/** CommonJS files that both forms share as they stand, with their types. */
const verbatim = ['src/platform/module_location.cjs', 'src/platform/module_location.d.cts'];

function sources() {
  const compiled = listFiles(['src', 'models'], (name) => /\.(ts|cjs|cts)$/.test(name));
  const described = ['package.json', 'tsconfig.json', 'tsconfig.esm.json', 'tsconfig.cjs.json'];
  const steps = ['scripts/set_up/compiled_sources.mjs', 'scripts/set_up/es_modules.mjs'];
  return [...compiled, ...listFiles([...described, ...steps])];
}

/** Runs one compiler; its messages are kept until it ends, so that those of the two do not mix. */
function compile(form) {
  const args = [dependency('typescript', 'bin', 'tsc'), '-p', `tsconfig.${form}.json`];
  const child = spawn(process.execPath, args, {cwd: root, stdio: ['ignore', 'pipe', 'pipe']});
  let messages = '';
  child.stdout.on('data', (text) => (messages += text));
  child.stderr.on('data', (text) => (messages += text));
  return new Promise((resolve) => {
    child.on('close', (status) => resolve({status, messages}));
  });
}

export async function prepareCompiledSources() {
  const stamp = join(root, 'dist', '.stamp');
  const hash = hashOf(sources());
  if (isStamped(stamp, hash)) return;
  const start = performance.now();
  say('compiling TypeScript (ES modules and CommonJS) ...');
  rmSync(join(root, 'dist'), {recursive: true, force: true});
  const results = await Promise.all(forms.map(compile));
  const failed = results.find(({status}) => status !== 0);
  if (failed) {
    process.stderr.write(failed.messages);
    throw new SetUpError('The sources do not compile.');
  }
  turnIntoEsModules(join(root, 'dist', 'esm'));
  for (const form of forms) {
    for (const file of verbatim) {
      const target = join(root, 'dist', form, file);
      mkdirSync(join(target, '..'), {recursive: true});
      cpSync(join(root, file), target);
    }
  }
  const missing = entryFiles().filter((file) => !existsSync(join(root, file)));
  if (missing.length > 0) {
    throw new SetUpError(
      `package.json names files that the build did not make:\n  ${missing.join('\n  ')}`,
    );
  }
  writeStamp(stamp, hash);
  say(`compiled in ${secondsSince(start)}`);
}

/** Every file of dist that package.json points at. */
function entryFiles() {
  const files = new Set();
  const visit = (value) => {
    if (typeof value === 'object' && value !== null) Object.values(value).forEach(visit);
    else if (typeof value === 'string' && /^(\.\/)?dist\/.*\.\w+$/.test(value)) files.add(value);
  };
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  for (const key of ['bin', 'main', 'module', 'types', 'exports', 'imports', 'typesVersions']) {
    visit(manifest[key]);
  }
  return [...files];
}
