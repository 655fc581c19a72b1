/** The set-up behind `npm run demo` and `npm test`: what makes a step run again, and what it leaves alone. */
import {spawnSync} from 'node:child_process';
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';

const root = join(__dirname, '..', '..');

interface Outcome {
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function node(cwd: string, ...args: string[]): Outcome {
  const child = spawnSync(process.execPath, args, {cwd, encoding: 'utf8', timeout: 60_000});
  return {status: child.status, stdout: child.stdout, stderr: child.stderr};
}

/** Runs an expression over the exports of a set-up module; gives what it returns. */
function evaluate(cwd: string, file: string, expression: string): unknown {
  const script = `
    const m = await import(${JSON.stringify(join(cwd, 'scripts/set_up', file))});
    console.log(JSON.stringify(await (${expression})));`;
  const {status, stdout, stderr} = node(cwd, '--input-type=module', '--eval', script);
  if (status !== 0) throw new Error(stderr);
  return JSON.parse(stdout);
}

describe('scripts/prepare.mjs', () => {
  let clone = '';
  beforeEach(() => {
    clone = mkdtempSync(join(tmpdir(), 'sage-set-up-'));
    cpSync(join(root, 'scripts'), join(clone, 'scripts'), {recursive: true});
  });
  afterEach(() => {
    rmSync(clone, {recursive: true});
  });

  it('names the jobs there are when asked for another', () => {
    const {status, stdout, stderr} = node(clone, 'scripts/prepare.mjs', 'tset');
    expect(status).toBe(1);
    expect(stderr).toContain('There is no job "tset"');
    expect(stderr).toContain('demo, ');
    expect(stdout).toBe('');
    expect(node(clone, 'scripts/prepare.mjs', 'constructor').status).toBe(1);
  });

  it('has a job behind every npm script', () => {
    const {scripts} = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
      scripts: Record<string, string>;
    };
    const {stderr} = node(clone, 'scripts/prepare.mjs', '');
    const jobs = /there are: (.*)\./.exec(stderr)?.[1]?.split(', ');
    expect(Object.keys(scripts)).toEqual(expect.arrayContaining(['demo', 'test', 'lint', 'build']));
    for (const [name, command] of Object.entries(scripts)) {
      expect(command).toBe(`node scripts/prepare.mjs ${name}`);
      expect(jobs).toContain(name);
    }
  });

  it('writes docs/benchmarks_cpu.md from whole comparisons on the CPU alone', () => {
    const runs = ['--peers --torch', '--torch=python3', '', '--gpu --torch', '--peers --case n512'];
    const writes = `${JSON.stringify(runs)}.map((run) => m.writesTables(run.split(' ')))`;
    const answers = evaluate(clone, '../writes_tables.mjs', writes);
    expect(answers).toEqual([true, true, false, false, false]);
  });

  it('takes installed dependencies for current only if the lock file agrees', () => {
    const lock = (version: string): string =>
      JSON.stringify({
        packages: {
          '': {version: '0.0.0'},
          'node_modules/a': {version},
          'node_modules/for-another-system': {version: '1.0.0', optional: true},
        },
      });
    mkdirSync(join(clone, 'node_modules'));
    const installed = {packages: {'node_modules/a': {version: '1.0.0'}}};
    writeFileSync(join(clone, 'node_modules/.package-lock.json'), JSON.stringify(installed));
    writeFileSync(join(clone, 'package-lock.json'), lock('1.0.0'));
    expect(evaluate(clone, 'dependencies.mjs', 'm.dependenciesAreCurrent()')).toBe(true);
    writeFileSync(join(clone, 'package-lock.json'), lock('1.0.1'));
    expect(evaluate(clone, 'dependencies.mjs', 'm.dependenciesAreCurrent()')).toBe(false);
    rmSync(join(clone, 'node_modules'), {recursive: true});
    expect(evaluate(clone, 'dependencies.mjs', 'm.dependenciesAreCurrent()')).toBe(false);
  });

  it('sees a changed, a renamed and a new source, and no difference in an equal one', () => {
    const hash = (): unknown =>
      evaluate(
        clone,
        'workspace.mjs',
        `m.hashOf(m.listFiles(['csrc'], (name) => name !== 'csrc/b.md'))`,
      );
    mkdirSync(join(clone, 'csrc'));
    writeFileSync(join(clone, 'csrc/a.cc'), 'one');
    const first = hash();
    expect(hash()).toBe(first);
    writeFileSync(join(clone, 'csrc/b.md'), 'left out');
    expect(hash()).toBe(first);
    writeFileSync(join(clone, 'csrc/a.cc'), 'two');
    const changed = hash();
    expect(changed).not.toBe(first);
    writeFileSync(join(clone, 'csrc/c.cc'), '');
    expect(hash()).not.toBe(changed);
    rmSync(join(clone, 'csrc'), {recursive: true});
    mkdirSync(join(clone, 'csrc'));
    writeFileSync(join(clone, 'csrc/d.cc'), 'one');
    expect(hash()).not.toBe(first);
  });

  it('lets one process set up at a time and takes over from one that died', () => {
    const script = (label: string): string => `
      const m = await import(${JSON.stringify(join(clone, 'scripts/set_up/lock.mjs'))});
      await m.withLock(async () => {
        console.log('${label} in');
        await new Promise((resolve) => setTimeout(resolve, 300));
        console.log('${label} out');
      });`;
    mkdirSync(join(clone, '.cache'));
    // Process numbers end far below this one.
    writeFileSync(join(clone, '.cache/set-up.lock'), '4194304999');
    const both = `
      const {spawn} = await import('node:child_process');
      const ends = ${JSON.stringify([script('a'), script('b')])}.map((code) => new Promise((resolve) => {
        spawn(process.execPath, ['--input-type=module', '--eval', code], {stdio: ['ignore', 1, 2]})
          .on('exit', resolve);
      }));
      await Promise.all(ends);`;
    const {stdout, stderr} = node(clone, '--input-type=module', '--eval', both);
    const [x, y] = stdout.startsWith('a') ? ['a', 'b'] : ['b', 'a'];
    expect(stdout).toBe(`${x} in\n${x} out\n${y} in\n${y} out\n`);
    expect(stderr).toContain('waiting for the set-up of another process');
    expect(existsSync(join(clone, '.cache/set-up.lock'))).toBe(false);
  });
});

describe('scripts/set_up/es_modules.mjs', () => {
  it('renames modules, declarations and maps, and every specifier that names them', () => {
    const folder = mkdtempSync(join(tmpdir(), 'sage-es-modules-'));
    const code = [
      `import {a} from './a.js';`,
      `export * from '../b.js';`,
      `import c from './kept.cjs';`,
      `import d from 'package/d.js';`,
      `const text = "from './text.js'";`,
      `const later = import('./later.js');`,
      `//# sourceMappingURL=m.js.map`,
    ].join('\n');
    writeFileSync(join(folder, 'm.js'), code);
    writeFileSync(join(folder, 'm.js.map'), JSON.stringify({file: 'm.js', mappings: 'A'}));
    writeFileSync(
      join(folder, 'm.d.ts'),
      `export type T = import('./t.js').T;\ndeclare module './u.js' {}\n`,
    );
    const call = `m.turnIntoEsModules(${JSON.stringify(folder)})`;
    expect(evaluate(root, 'es_modules.mjs', `${call}, 'done'`)).toBe('done');
    expect(readFileSync(join(folder, 'm.mjs'), 'utf8')).toBe(
      code
        .replace('./a.js', './a.mjs')
        .replace('../b.js', '../b.mjs')
        .replace('./later.js', './later.mjs')
        .replace('m.js.map', 'm.mjs.map'),
    );
    expect(readFileSync(join(folder, 'm.mjs.map'), 'utf8')).toContain('"file":"m.mjs"');
    expect(readFileSync(join(folder, 'm.d.mts'), 'utf8')).toBe(
      `export type T = import('./t.mjs').T;\ndeclare module './u.mjs' {}\n`,
    );
    expect(existsSync(join(folder, 'm.js'))).toBe(false);
    rmSync(folder, {recursive: true});
  });
});
