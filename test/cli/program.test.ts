/** The frame of the command line: help, version, refusals, exit codes, and what goes to which stream. */
import {execFileSync} from 'node:child_process';
import {existsSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import {CliError, messageOf} from '../../src/cli/cli_error.js';
import {count, counts, listOf, splitList} from '../../src/cli/arguments.js';
import {formatMs, formatNumber, formatTable} from '../../src/cli/table.js';
import {divertLogs, openTerminal} from '../../src/cli/terminal.js';
import {startBackend} from '../../src/cli/tfjs_backend.js';
import {run} from './run.js';

const root = join(__dirname, '..', '..');
const {version} = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {version: string};

describe('help and version', () => {
  it('--version prints the version of the package', async () => {
    expect(await run('--version')).toEqual({code: 0, stdout: `${version}\n`, stderr: ''});
  });

  it('--help lists the commands with examples that parse', async () => {
    const {code, stdout, stderr} = await run('--help');
    expect([code, stderr]).toEqual([0, '']);
    for (const name of ['demo', 'doctor', 'accuracy', 'bench', 'setup-tensorflow'])
      expect(stdout).toContain(`  ${name} `);
    const examples = [...stdout.matchAll(/^ {2}\$ npx tfjs-sage-attention (.*)$/gm)];
    expect(examples.length).toBeGreaterThan(4);
    for (const [, example = ''] of examples) {
      // Help ends the command before it starts; an option that does not exist would be refused first.
      const args = example.replace(/ >.*/, '').split(' ');
      expect(await run(...args, '--help')).toMatchObject({code: 0, stderr: ''});
    }
  });

  const commands = ['demo', 'doctor', 'accuracy', 'bench', 'setup-tensorflow'];
  it.each(commands)('%s --help tells its options', async (name) => {
    const {code, stdout} = await run(name, '--help');
    expect(code).toBe(0);
    expect(stdout).toContain(`Usage: tfjs-sage-attention ${name}`);
    expect(stdout).toContain('--json');
  });

  it('tells the commands, as a failure, when none is given', async () => {
    const {code, stdout, stderr} = await run();
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toContain('Commands:');
  });
});

describe('refusals: exit code 1, words on stderr, nothing on stdout', () => {
  it.each([
    [['dmo'], `unknown command 'dmo'`],
    [['demo', '--presicion', 'fp4'], `unknown option '--presicion'`],
    [['demo', 'extra'], 'too many arguments'],
    [['demo', '--precision', 'fp5'], `Expected 'exact', 'int16'`],
    [['demo', '--precision', 'fp4,,exact'], 'commas between them'],
    [['demo', '--precision'], 'argument missing'],
    [['demo', '--backend', 'webgl'], `Expected 'wasm', 'cpu' or 'tensorflow'`],
    [['demo', '--windows', '0'], 'whole number >= 1'],
    [['demo', '--windows', '1.5'], 'whole number >= 1'],
    [['accuracy', '--engine', 'cuda'], `Expected 'native' or 'typescript'`],
    [['accuracy', '--distribution', 'gauss'], `Expected 'normal'`],
    [['bench', '--threads', '1,0'], 'whole number >= 1'],
    [['bench', '--case', 'h12_d64'], null],
    [['bench', '--case', 'n77'], `No case has 'n77' in its name`],
    [['bench', '--case', 'h1_d513_n8_full'], 'head_dim up to 512'],
    [['bench', '--case', 'h0_d64_n8_full'], 'sizes above 0'],
    [['bench', '--gpu', '--peers'], '--gpu has cases of its own'],
    [['bench', '--gpu', '--tokens', '0'], 'whole number >= 1'],
    [['bench', '--tokens', '2048'], '--tokens and --write belong to --gpu'],
    [['bench', '--models', '--threads', '2'], '--models has models of its own'],
    [
      ['setup-tensorflow', '--wheel', '/no/such.whl'],
      '--wheel /no/such.whl: there is no such file',
    ],
    [['setup-tensorflow', '--site-packages', 'a', '--strip'], '--strip means nothing with it'],
    [['setup-tensorflow', '--site-packages', 'a', '--wheel', 'b'], '--wheel means nothing with it'],
    [['setup-tensorflow', '--whele', 'b'], `unknown option '--whele'`],
  ])('%j', async (args, words) => {
    if (words === null) {
      // Part of six default names: fine. Asked with --help, so that nothing is timed.
      expect((await run(...args, '--help')).code).toBe(0);
      return;
    }
    const {code, stdout, stderr} = await run(...args);
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr).toContain('error: ');
    expect(stderr).toContain(words);
    expect(stderr).not.toMatch(/^\s+at /m);
  });

  it('suggests the command that was meant', async () => {
    expect((await run('docter')).stderr).toContain('Did you mean doctor?');
  });
});

describe('values of options', () => {
  it('reads lists once each and in order', () => {
    const names = listOf(['a', 'b', 'c'] as const);
    expect(names('c, a,c')).toEqual(['c', 'a']);
    expect(() => names('d')).toThrow();
    expect(splitList('a,b')).toEqual(['a', 'b']);
    expect(() => splitList('')).toThrow();
  });

  it('reads counts', () => {
    expect(counts('1,2,1')).toEqual([1, 2]);
    for (const wrong of ['', '-1', '0x10', '1e3', 'NaN', '99999999999999999999']) {
      expect(() => count(wrong)).toThrow('whole number');
    }
  });
});

describe('streams', () => {
  const sink = () => {
    const texts: string[] = [];
    return {texts, write: (text: string) => void texts.push(text)};
  };

  it('with --json nothing but the object reaches stdout', () => {
    const [out, err] = [sink(), sink()];
    const terminal = openTerminal(true, out, err);
    terminal.print('table');
    terminal.write('part');
    terminal.note('progress');
    expect([out.texts, err.texts]).toEqual([[], ['progress\n']]);
    expect(terminal.colours).toBe(false);
  });

  it('colours are for terminals only', () => {
    const tty = {...sink(), isTTY: true};
    expect(openTerminal(false, tty, sink()).colours).toBe(true);
    expect(openTerminal(false, sink(), tty).colours).toBe(false);
    expect(openTerminal(true, tty, tty).colours).toBe(false);
  });

  it('sends what libraries log to stderr, and gives the console back', () => {
    const err = sink();
    const {log} = console;
    const restore = divertLogs(err);
    console.log('loaded', 3);
    console.info('more');
    restore();
    expect(err.texts).toEqual(['loaded 3\n', 'more\n']);
    expect(console.log).toBe(log);
  });
});

describe('errors in words', () => {
  it('are the message and the hint', () => {
    expect(messageOf(new CliError('It broke.', 'npm install x'))).toBe('It broke.\nnpm install x');
    expect(messageOf(new CliError('It broke.'))).toBe('It broke.');
    expect(messageOf(new RangeError('too far'))).toBe('too far');
    expect(messageOf({message: 'from another realm', code: 'SAGE_X'})).toBe('from another realm');
    expect(messageOf('text')).toBe('text');
    expect(messageOf(undefined)).toBe('undefined');
  });

  it('name the package of a backend that is not installed', async () => {
    jest.doMock('@tensorflow/tfjs-backend-wasm', () => {
      throw Object.assign(new Error('Cannot find module'), {code: 'MODULE_NOT_FOUND'});
    });
    try {
      await expect(startBackend('wasm')).rejects.toMatchObject({
        message: `tfjs backend 'wasm' is not installed.`,
        hint: 'npm install @tensorflow/tfjs-backend-wasm',
      });
    } finally {
      jest.dontMock('@tensorflow/tfjs-backend-wasm');
    }
  });
});

describe('tables', () => {
  it('have no frame, no colours on pipes, and numbers to the right', () => {
    const table = formatTable(
      [{title: 'name'}, {title: 'ms', align: 'right'}],
      [
        ['exact', '12'],
        ['int8', '3'],
      ],
      false,
    );
    expect(table).toBe('name   ms\nexact  12\nint8    3');
  });

  it('keep small numbers readable', () => {
    expect([0.123456, 0.00912, 6.1e-7, 0, 1, NaN].map(formatNumber)).toEqual([
      '0.123',
      '0.00912',
      '6.1e-7',
      '0.00',
      '1.00',
      'NaN',
    ]);
    expect([0.1234, 12.34, 123.4].map(formatMs)).toEqual(['0.123', '12.3', '123']);
  });
});

describe('the built program', () => {
  const built = join(root, 'dist', 'cjs', 'src', 'cli', 'main.js');
  const ifBuilt = existsSync(built) ? test : test.skip;
  const node = (args: string[], environment: Record<string, string> = {}): string =>
    execFileSync(process.execPath, [built, ...args], {
      encoding: 'utf8',
      stdio: 'pipe',
      env: {...process.env, ...environment},
    });

  ifBuilt('runs, and fails with exit code 1', () => {
    expect(node(['--version'])).toBe(`${version}\n`);
    expect(() => node(['nothing'])).toThrow(expect.objectContaining({status: 1, stdout: ''}));
    expect(readFileSync(built, 'utf8')).toMatch(/^#!\/usr\/bin\/env node\n/);
  });

  ifBuilt.each([
    ['SAGE_NUM_THREADS', 'several'],
    ['SAGE_CPU_ISA', 'mmx'],
  ])(
    'doctor reports, and names the cure, where %s is %s',
    (name, value) => {
      const report = JSON.parse(node(['doctor', '--json'], {[name]: value})) as {
        engines: {name: string; available: boolean}[];
        checks: {name: string; status: string; message: string; fix: string}[];
      };
      expect(report.checks.find((check) => check.name === 'environment')).toMatchObject({
        status: 'failed',
        message: expect.stringContaining(`${name} is '${value}'`) as string,
        fix: `Unset ${name} to let the package choose.`,
      });
      expect(report.engines.find((engine) => engine.name === 'typescript')?.available).toBe(true);
    },
    60_000,
  );
});
