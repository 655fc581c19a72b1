/** `#platform`: Node's answers are real, a browser's are empty and never throw (but for loading a native module). */
import {existsSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {platform as browser} from '../../src/platform/browser.js';
import {platform as node} from '../../src/platform/node.js';

const root = join(__dirname, '..', '..');

describe('#platform in Node', () => {
  let folder = '';
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'sage-platform-'));
  });
  afterAll(() => {
    rmSync(folder, {recursive: true});
  });

  it('finds the root of this package from its sources', () => {
    expect(node.packageRoot).toBe(root);
  });

  it('knows the machine', () => {
    expect(node).toMatchObject({name: 'node', os: process.platform, arch: process.arch});
    expect(node.nodeVersion).toBe(process.version);
    expect(node.processors).toBeGreaterThanOrEqual(1);
    const muslLoader = existsSync(
      `/lib/ld-musl-${process.arch === 'x64' ? 'x86_64' : 'aarch64'}.so.1`,
    );
    if (process.platform === 'linux') expect(node.libc).toBe(muslLoader ? 'musl' : 'glibc');
  });

  it('reads the environment, and takes an empty variable for an unset one', () => {
    const name = 'SAGE_TEST_OF_PLATFORM';
    expect(node.env(name)).toBeUndefined();
    process.env[name] = 'value';
    expect(node.env(name)).toBe('value');
    process.env[name] = '';
    expect(node.env(name)).toBeUndefined();
    // Assigning undefined would store the text 'undefined'.
    Reflect.deleteProperty(process.env, name);
  });

  it('reads files, and gives null for what cannot be read', () => {
    const path = node.joinPath(folder, 'a.txt');
    expect([node.exists(path), node.readText(path), node.readBytes(path)]).toEqual([
      false,
      null,
      null,
    ]);
    writeFileSync(path, 'ä');
    expect(node.exists(path)).toBe(true);
    expect(node.readText(path)).toBe('ä');
    expect([...(node.readBytes(path) ?? [])]).toEqual([0xc3, 0xa4]);
    expect(node.readText(folder)).toBeNull();
  });

  it('resolves installed packages only', () => {
    expect(node.resolveModule('@tensorflow/tfjs-core')).toContain('tfjs-core');
    expect(node.resolveModule('@tfjs-sage-attention/no-such-platform')).toBeNull();
  });

  it('throws what the loader throws for a file that is no native module', () => {
    const path = join(folder, 'broken.node');
    writeFileSync(path, 'not an addon');
    expect(() => node.loadNativeModule(path)).toThrow();
    expect(() => node.loadNativeModule(join(folder, 'missing.node'))).toThrow(/missing\.node/);
  });

  it('runs a child, with its exit code, output and environment', () => {
    const script =
      'process.stdout.write(process.env.SAGE_X);process.stderr.write("e");process.exit(3)';
    const options = {timeoutMs: 10_000, environment: {SAGE_X: 'x'}};
    const result = node.runNode(['-e', script], options);
    expect(result).toEqual({status: 3, signal: null, timedOut: false, stdout: 'x', stderr: 'e'});
  });

  it('tells a crash and a time-out of the child', () => {
    const crash = node.runNode(['-e', 'process.kill(process.pid, "SIGBUS")'], {timeoutMs: 10_000});
    expect(crash).toMatchObject({status: null, signal: 'SIGBUS', timedOut: false});
    const endless = node.runNode(['-e', 'setInterval(() => 0, 100)'], {timeoutMs: 300});
    expect(endless).toMatchObject({status: null, timedOut: true});
  });
});

describe('#platform in browsers', () => {
  it('has no files, no environment, no modules and no children', () => {
    expect(browser).toMatchObject({name: 'browser', os: null, arch: null, libc: null});
    expect(browser.packageRoot).toBeNull();
    expect(browser.processors).toBeGreaterThanOrEqual(1);
    expect(browser.env('PATH')).toBeUndefined();
    expect(browser.exists('/')).toBe(false);
    expect([browser.readText('/'), browser.readBytes('/')]).toEqual([null, null]);
    expect([browser.resolveModule('x'), browser.loadedModule('x')]).toEqual([null, null]);
    expect(browser.runNode([], {timeoutMs: 1})).toBeNull();
    expect(() => browser.loadNativeModule('/x.node')).toThrow(/Node only/);
  });

  it('has the same members as in Node', () => {
    expect(Object.keys(browser).sort()).toEqual(Object.keys(node).sort());
  });
});
