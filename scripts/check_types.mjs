// Type tests: compiles test/types against the built declarations as a user's compiler would, in a folder outside the
// repository, under every module resolution that the package promises. `@ts-expect-error` lines are the negative half.
import {spawnSync} from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {dependency, listFiles, root, say} from './set_up/workspace.mjs';

/** Compiler settings of each kind of user. `types: []`: what we declare must not need anybody's ambient types. */
const consumers = [
  {name: 'node16, ES modules', type: 'module', module: 'Node16', moduleResolution: 'Node16'},
  {name: 'node16, CommonJS', type: 'commonjs', module: 'Node16', moduleResolution: 'Node16'},
  {name: 'bundler', type: 'module', module: 'ESNext', moduleResolution: 'Bundler'},
  {name: 'node10', type: 'commonjs', module: 'CommonJS', moduleResolution: 'Node10'},
];

/** A folder with this package as built and every dependency beside it. */
function makeConsumer(directory) {
  const modules = join(directory, 'node_modules');
  const self = join(modules, 'tfjs-sage-attention');
  mkdirSync(self, {recursive: true});
  for (const name of readdirSync(join(root, 'node_modules'))) {
    if (!name.startsWith('.')) symlinkSync(dependency(name), join(modules, name));
  }
  cpSync(join(root, 'package.json'), join(self, 'package.json'));
  cpSync(join(root, 'dist'), join(self, 'dist'), {recursive: true});
}

/**
 * Compiles test/types in a folder whose node_modules holds this package; returns whether every consumer passed.
 * A file named `*.bundler.ts` and the like is compiled for that resolution only.
 */
export function checkTypes(directory) {
  const tests = listFiles(['test/types'], (name) => name.endsWith('.ts'));
  let passed = true;
  for (const {name, type, module, moduleResolution} of consumers) {
    const folder = join(directory, name.replace(/\W+/g, '_'));
    mkdirSync(folder, {recursive: true});
    for (const file of tests)
      cpSync(file, join(folder, file.slice(join(root, 'test/types/').length)));
    writeFileSync(join(folder, 'package.json'), JSON.stringify({private: true, type}));
    const compilerOptions = {
      target: 'ES2022',
      lib: ['ES2022', 'DOM'],
      module,
      moduleResolution,
      strict: true,
      exactOptionalPropertyTypes: true,
      esModuleInterop: true,
      // tfjs' own declarations do not pass a full check; ours are covered by what the tests use.
      skipLibCheck: true,
      noEmit: true,
      types: [],
      ...(moduleResolution === 'Node10' ? {ignoreDeprecations: '5.0'} : {}),
    };
    const config = {compilerOptions, include: ['*.ts']};
    writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(config));
    const tsc = dependency('typescript', 'bin', 'tsc');
    const child = spawnSync(process.execPath, [tsc, '-p', folder], {encoding: 'utf8'});
    if (child.status !== 0) process.stderr.write(child.stdout);
    say(`types, ${name}: ${child.status === 0 ? 'passed' : 'FAILED'}`);
    passed &&= child.status === 0;
  }
  return passed;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const directory = mkdtempSync(join(tmpdir(), 'sage-types-'));
  try {
    makeConsumer(directory);
    process.exitCode = checkTypes(directory) ? 0 : 1;
  } finally {
    if (existsSync(directory)) rmSync(directory, {recursive: true, force: true});
  }
}
