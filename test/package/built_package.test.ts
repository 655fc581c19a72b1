/** The package as built and as packed: every entry loads both ways, browsers see no Node, the tarball is complete. */
import {execFileSync, spawnSync} from 'node:child_process';
import {readFileSync} from 'node:fs';
import {dirname, join} from 'node:path';

interface Manifest {
  readonly version: string;
  readonly exports: Readonly<Record<string, unknown>>;
  readonly dependencies: Readonly<Record<string, string>>;
  readonly devDependencies: Readonly<Record<string, string>>;
  readonly peerDependencies: Readonly<Record<string, string>>;
  readonly scripts: Readonly<Record<string, string>>;
}

const root = join(__dirname, '..', '..');
const readJson = (path: string): unknown => JSON.parse(readFileSync(join(root, path), 'utf8'));
const manifest = readJson('package.json') as Manifest;

/** Entries that need a peer which this repository does not install, with that peer. */
const absentPeers: Readonly<Record<string, string>> = {
  './tfjs-node-gpu': '@tensorflow/tfjs-node-gpu',
};

/** Entries that need a TensorFlow; tfjs-node is installed here without its native binding. */
const needsTensorflow = ['./tfjs-node', './tensorflow'];

/** Adds matchers to `expect`, which only a test has. */
const needsJest = './jest';

const entries = Object.keys(manifest.exports).filter((entry) => !entry.endsWith('.json'));
const nameOf = (entry: string): string => join('tfjs-sage-attention', entry);

/** Runs a script in the package's own folder, so that its name resolves to itself. */
function run(kind: 'module' | 'commonjs', script: string): {status: number | null; output: string} {
  const args = [`--input-type=${kind}`, '--eval', script];
  // A folder that does not exist: what else lies on this machine must not decide.
  const env = {...process.env, SAGE_TENSORFLOW_DIR: join(root, 'no-such-folder')};
  const child = spawnSync(process.execPath, args, {
    cwd: root,
    encoding: 'utf8',
    env,
    timeout: 60_000,
  });
  return {status: child.status, output: child.stdout + child.stderr};
}

function exportedNames(kind: 'module' | 'commonjs', entry: string): string[] {
  const name = JSON.stringify(nameOf(entry));
  const load =
    kind === 'module' ? `import * as entry from ${name};` : `const entry = require(${name});`;
  const marker = 'names:';
  const {status, output} = run(kind, `${load} console.log('${marker}' + Object.keys(entry))`);
  if (status !== 0) throw new Error(output);
  const line = output.split('\n').find((text) => text.startsWith(marker)) ?? '';
  return line.slice(marker.length).split(',').sort();
}

describe('entries', () => {
  const loadable = entries.filter(
    (entry) => !(entry in absentPeers) && !needsTensorflow.includes(entry) && entry !== needsJest,
  );

  it.each(loadable)('%s exports the same names as ES module and as CommonJS', (entry) => {
    const names = exportedNames('module', entry).filter((name) => name !== 'default');
    const required = exportedNames('commonjs', entry);
    // A module object that tfjs' own names were copied to may list more, never less.
    expect(required).toEqual(
      expect.arrayContaining(names.filter((name) => name !== 'module.exports')),
    );
    if (entry === '.' || entry.startsWith('./models')) {
      expect(names.filter((name) => name !== 'module.exports')).toEqual(required);
    }
  });

  it.each(Object.entries(absentPeers))('%s names the peer that is missing', (entry, peer) => {
    const name = JSON.stringify(nameOf(entry));
    for (const [kind, load] of [
      ['module', `import ${name}`],
      ['commonjs', `require(${name})`],
    ] as const) {
      const {status, output} = run(kind, load);
      expect(status).not.toBe(0);
      expect(output).toContain(`'${peer}'`);
    }
  });
});

describe('without a TensorFlow', () => {
  it.each(needsTensorflow)('%s names the command that brings one', (entry) => {
    const name = JSON.stringify(nameOf(entry));
    for (const [kind, load] of [
      ['module', `import ${name}`],
      ['commonjs', `require(${name})`],
    ] as const) {
      const {status, output} = run(kind, load);
      expect(status).not.toBe(0);
      expect(output).toContain('SageAttentionError: tensorflow: ');
      expect(output).toContain('npx tfjs-sage-attention setup-tensorflow');
      expect(output).toContain(`code: 'tensorflow-not-set-up'`);
    }
  });
});

describe('what a browser loads', () => {
  const specifier = /(?:from|import)\s*\(?\s*['"]([^'"]+)['"]/g;

  /** Every bare specifier that the module graph of an entry names, `#platform` bound as outside Node. */
  function bareSpecifiers(entryFile: string): Set<string> {
    const bare = new Set<string>();
    const seen = new Set<string>();
    const visit = (path: string): void => {
      if (seen.has(path)) return;
      seen.add(path);
      for (const [, name = ''] of withoutComments(readFileSync(path, 'utf8')).matchAll(specifier)) {
        if (name.startsWith('.')) visit(join(dirname(path), name));
        else if (name === '#platform') visit(join(root, 'dist/esm/src/platform/browser.mjs'));
        else bare.add(name);
      }
    };
    visit(join(root, entryFile));
    return bare;
  }

  function withoutComments(code: string): string {
    return code.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
  }

  it('is tfjs-core and declared dependencies, and nothing of Node', () => {
    const allowed = ['@tensorflow/tfjs-core', ...Object.keys(manifest.dependencies)];
    const bare = [...bareSpecifiers('dist/esm/src/index.mjs')];
    expect(bare).toContain('@tensorflow/tfjs-core');
    expect(bare.filter((name) => !allowed.includes(name))).toEqual([]);
  });
});

describe('the tarball', () => {
  const paths = (): string[] => {
    const args = ['pack', '--dry-run', '--json', '--ignore-scripts'];
    const report = execFileSync('npm', args, {cwd: root, encoding: 'utf8', stdio: 'pipe'});
    const [{files}] = JSON.parse(report) as [{files: {path: string}[]}];
    return files.map(({path}) => path);
  };

  it('carries what users need and nothing that they do not', () => {
    const packed = paths();
    for (const path of [
      'LICENSE',
      'NOTICE',
      'README.md',
      'CMakeLists.txt',
      'docs/numerics.md',
      'csrc/include/sage/problem.h',
      'dist/esm/src/index.mjs',
      'dist/esm/src/index.d.mts',
      'dist/cjs/src/index.js',
      'dist/cjs/src/cli/main.js',
      'dist/cjs/src/platform/module_location.cjs',
      'models/gpt2/js-gpt/config.json',
      'models/gpt2/js-gpt/model.safetensors',
      'models/gpt2/js-gpt/prompts/matrix.js',
    ]) {
      expect(packed).toContain(path);
    }
    const unwanted =
      /^(build|test|bench|node_modules|scripts|npm|csrc\/test)\/|\.(node|tgz|stamp)$/;
    expect(packed.filter((path) => unwanted.test(path))).toEqual([]);
  });
});

describe('the manifest', () => {
  const lock = readJson('package-lock.json') as {
    packages: Record<string, {version?: string; resolved?: string; optionalDependencies?: object}>;
  };

  it('runs nothing at installation', () => {
    const atInstallation = /^(pre|post)?(install|prepare|prepublish|dependencies)$/;
    expect(Object.keys(manifest.scripts).filter((name) => atInstallation.test(name))).toEqual([]);
  });

  it('pins what it installs, and the lock file agrees', () => {
    for (const [name, version] of Object.entries({
      ...manifest.dependencies,
      ...manifest.devDependencies,
    })) {
      expect(`${name} ${version}`).toMatch(/ \d+\.\d+\.\d+$/);
      expect(lock.packages[`node_modules/${name}`]?.version).toBe(version);
    }
  });

  it('has a lock file without addresses, and with the packages of every system', () => {
    const locked = Object.entries(lock.packages);
    expect(locked.filter(([, {resolved}]) => resolved !== undefined)).toEqual([]);
    const missing = locked.flatMap(([path, {optionalDependencies = {}}]) =>
      Object.keys(optionalDependencies).filter(
        (name) =>
          !(`node_modules/${name}` in lock.packages) &&
          !(`${path}/node_modules/${name}` in lock.packages),
      ),
    );
    expect(missing).toEqual([]);
  });

  it('has platform packages of its own version, for one system each', () => {
    const platformPackage = readJson('npm/linux-x64/package.json');
    expect(platformPackage).toMatchObject({
      name: '@tfjs-sage-attention/linux-x64',
      version: manifest.version,
      os: ['linux'],
      cpu: ['x64'],
      libc: ['glibc'],
      main: 'sage_attention.node',
    });
  });

  it('asks for the tfjs that it is tested with', () => {
    expect(manifest.peerDependencies['@tensorflow/tfjs-core']).toBe(
      `^${manifest.devDependencies['@tensorflow/tfjs-core']}`,
    );
  });
});
