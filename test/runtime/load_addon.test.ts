/** Where the addon is looked for and which files are refused unread: on made-up files and a made-up platform. */
import type * as LoadAddonModule from '../../src/runtime/load_addon.js';
import {PROBLEM_VERSION, PROBLEM_WORDS} from '../../src/problem.js';
import {findBinaryFault} from '../../src/runtime/check_binary.js';
import type {Platform} from '../../src/platform/platform.js';

const HEADER_BYTES = 64;
const SEGMENT_BYTES = 56;
const SECTION_BYTES = 64;

/** A shared library of 256 bytes: one segment, and a section table whose one section ends with the file. */
function makeElf(machine = 62): Uint8Array {
  const bytes = new Uint8Array(256);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, 2, 1, 1]);
  view.setUint16(16, 3, true);
  view.setUint16(18, machine, true);
  view.setUint32(32, HEADER_BYTES, true);
  view.setUint32(40, HEADER_BYTES + SEGMENT_BYTES, true);
  view.setUint16(54, SEGMENT_BYTES, true);
  view.setUint16(56, 1, true);
  view.setUint16(58, SECTION_BYTES, true);
  view.setUint16(60, 1, true);
  view.setUint32(HEADER_BYTES + 32, 200, true);
  const section = HEADER_BYTES + SEGMENT_BYTES;
  view.setUint32(section + 4, 1, true);
  view.setUint32(section + 24, 184, true);
  view.setUint32(section + 32, 72, true);
  return bytes;
}

function changed(at: number, value: number, width: 1 | 2 | 4): Uint8Array {
  const bytes = makeElf();
  const view = new DataView(bytes.buffer);
  if (width === 1) view.setUint8(at, value);
  else if (width === 2) view.setUint16(at, value, true);
  else view.setUint32(at, value, true);
  return bytes;
}

describe('findBinaryFault', () => {
  const fault = (bytes: Uint8Array, arch = 'x64'): string | null =>
    findBinaryFault(bytes, 'linux', arch)?.code ?? null;

  test('a whole file passes, also as a view with an offset', () => {
    expect(fault(makeElf())).toBeNull();
    expect(fault(makeElf(183), 'arm64')).toBeNull();
    const shifted = new Uint8Array(300);
    shifted.set(makeElf(), 7);
    expect(fault(shifted.subarray(7, 263))).toBeNull();
  });

  test('every shorter one is damaged', () => {
    for (let length = 0; length < 256; length++) {
      expect(fault(makeElf().subarray(0, length))).toBe('damaged');
    }
  });

  test('other processors', () => {
    expect(fault(makeElf(183))).toBe('wrong-cpu');
    expect(findBinaryFault(makeElf(183), 'linux', 'x64')?.message).toContain('arm64');
    expect(findBinaryFault(makeElf(1234), 'linux', 'x64')?.message).toContain('1234');
    expect(fault(changed(4, 1, 1))).toBe('wrong-cpu');
    expect(fault(changed(5, 2, 1))).toBe('wrong-cpu');
  });

  test('no library, tables and contents outside the file', () => {
    expect(fault(changed(0, 0, 1))).toBe('damaged');
    expect(fault(changed(16, 2, 2))).toBe('damaged');
    expect(fault(changed(32, 250, 4))).toBe('damaged');
    expect(fault(changed(44, 1, 4))).toBe('damaged');
    expect(fault(changed(60, 0xffff, 2))).toBe('damaged');
    expect(fault(changed(54, 0, 2))).toBe('damaged');
    expect(fault(changed(HEADER_BYTES + 36, 0x7fffffff, 4))).toBe('damaged');
    expect(fault(changed(HEADER_BYTES + SEGMENT_BYTES + 32, 73, 4))).toBe('damaged');
  });

  test('a section without bytes may be of any size (.bss)', () => {
    const bytes = changed(HEADER_BYTES + SEGMENT_BYTES + 4, 8, 4);
    new DataView(bytes.buffer).setUint32(HEADER_BYTES + SEGMENT_BYTES + 32, 1 << 30, true);
    expect(fault(bytes)).toBeNull();
  });

  test('other systems have other formats, which are let through', () => {
    expect(findBinaryFault(new Uint8Array(3), 'darwin', 'arm64')).toBeNull();
  });
});

/** A platform whose files and modules are given; what is not given does not exist. */
function makePlatform(given: {
  files?: Record<string, Uint8Array | unknown>;
  packageFile?: string;
  environment?: Record<string, string>;
  changes?: Partial<Platform>;
}): Platform {
  const {files = {}, packageFile, environment = {}, changes = {}} = given;
  return {
    name: 'node',
    os: 'linux',
    arch: 'x64',
    libc: 'glibc',
    nodeVersion: 'v20.0.0',
    processors: 2,
    packageRoot: '/package',
    allocateFloats: (count) => new Float32Array(count),
    env: (variable) => environment[variable],
    joinPath: (...segments) => segments.join('/'),
    exists: (path) => path in files,
    readText: () => null,
    readBytes: (path) => (path in files ? makeElf() : null),
    loadNativeModule(path) {
      const exports = files[path];
      if (exports instanceof Error) throw exports;
      return exports;
    },
    resolveModule: (specifier) =>
      specifier === '@tfjs-sage-attention/linux-x64' ? (packageFile ?? null) : null,
    loadedModule: () => null,
    runNode: () => null,
    ...changes,
  };
}

/** An addon as far as loading looks at it. */
const good = {
  forward: () => undefined,
  capabilities: () => ({
    version: '0.1.0',
    problemVersion: PROBLEM_VERSION,
    problemWords: PROBLEM_WORDS,
  }),
};
const BUILT = '/package/build/Release/sage_attention.node';
const PACKED = '/node_modules/@tfjs-sage-attention/linux-x64/sage_attention.node';

async function withPlatform(
  given: Parameters<typeof makePlatform>[0],
  use: (load: typeof LoadAddonModule) => void,
): Promise<void> {
  await jest.isolateModulesAsync(async () => {
    jest.doMock('#platform', () => ({platform: makePlatform(given)}));
    use(await import('../../src/runtime/load_addon.js'));
    jest.dontMock('#platform');
  });
}

describe('loadAddon', () => {
  test('the environment, then the build folder, then the platform package', async () => {
    const files = {'/own/a.node': good, [BUILT]: {...good}, [PACKED]: {...good}};
    const everything = {
      files,
      packageFile: PACKED,
      environment: {SAGE_NATIVE_PATH: '/own/a.node'},
    };
    await withPlatform(everything, ({loadAddon}) => {
      expect(loadAddon().addon).toBe(good);
      expect(loadAddon().attempts).toMatchObject([{source: 'SAGE_NATIVE_PATH', ok: true}]);
    });
    await withPlatform({files, packageFile: PACKED}, ({loadAddon}) => {
      expect(loadAddon().addon).toBe(files[BUILT]);
    });
    await withPlatform({files: {[PACKED]: good}, packageFile: PACKED}, ({loadAddon}) => {
      expect(loadAddon().addon).toBe(good);
      expect(loadAddon().attempts).toMatchObject([
        {source: 'build/Release', code: 'not-found', path: BUILT},
        {source: 'platform package', code: 'loaded', path: PACKED},
      ]);
    });
  });

  test('nothing anywhere: every attempt has its reason', async () => {
    await withPlatform({}, ({loadAddon}) => {
      expect(loadAddon().addon).toBeNull();
      expect(loadAddon().attempts.map(({message}) => message)).toEqual([
        'nothing was built there',
        '@tfjs-sage-attention/linux-x64 is not installed',
      ]);
    });
    await withPlatform({changes: {packageRoot: null, libc: 'musl'}}, ({loadAddon}) => {
      expect(loadAddon().attempts.map(({message}) => message)).toEqual([
        'the package folder is not known',
        '@tfjs-sage-attention/linux-x64 is built for glibc, this system has musl',
      ]);
    });
  });

  test('a browser has no places at all', async () => {
    await withPlatform({changes: {name: 'browser', os: null, arch: null}}, ({loadAddon}) => {
      expect(loadAddon()).toEqual({addon: null, attempts: []});
    });
  });

  test('a file that does not load, or is another addon, leads to the next', async () => {
    const failures: [unknown, string, string][] = [
      [
        new Error('GLIBC_2.99 not found\nRequire stack: ...'),
        'load-failed',
        'GLIBC_2.99 not found',
      ],
      [{}, 'wrong-version', 'it is no addon of this package'],
      [null, 'wrong-version', 'it is no addon of this package'],
      [
        {
          ...good,
          capabilities: () => ({
            version: '9.9.9',
            problemVersion: PROBLEM_VERSION + 1,
            problemWords: PROBLEM_WORDS,
          }),
        },
        'wrong-version',
        'it was built for version 9.9.9 of this package, whose calls look different',
      ],
      [
        {
          ...good,
          capabilities: () => {
            throw new Error('broken');
          },
        },
        'wrong-version',
        'it does not answer: broken',
      ],
    ];
    for (const [exports, code, message] of failures) {
      const files = {[BUILT]: exports, [PACKED]: good};
      await withPlatform({files, packageFile: PACKED}, ({loadAddon}) => {
        expect(loadAddon().addon).toBe(good);
        expect(loadAddon().attempts[0]).toMatchObject({ok: false, code, message});
      });
    }
  });

  test('a damaged file is never given to the loader', async () => {
    const loadNativeModule = jest.fn();
    const readBytes = (): Uint8Array => makeElf().subarray(0, 128);
    await withPlatform({changes: {readBytes, loadNativeModule}}, ({loadAddon}) => {
      expect(loadAddon().attempts[0]).toMatchObject({code: 'damaged'});
      expect(loadNativeModule).not.toHaveBeenCalled();
    });
  });
});

describe('probeInChild', () => {
  const probe = async (
    child: Partial<NonNullable<ReturnType<Platform['runNode']>>> | null,
  ): Promise<string> => {
    const whole = {status: 0, signal: null, timedOut: false, stdout: '', stderr: ''};
    const runNode = (): ReturnType<Platform['runNode']> => child && {...whole, ...child};
    let message = '';
    await withPlatform({changes: {runNode}}, ({probeInChild}) => {
      const result = probeInChild('/some/sage_attention.node');
      expect(result.ok).toBe(false);
      ({message} = result);
    });
    return message;
  };

  test('how a child process ended, in words', async () => {
    expect(await probe({status: null, signal: 'SIGBUS'})).toBe('it ended the process with SIGBUS');
    expect(await probe({status: null, signal: 'SIGTERM', timedOut: true})).toBe(
      'no answer within 30 s',
    );
    expect(await probe({status: 9, stderr: 'first\nlast\n'})).toBe('last');
    expect(await probe({status: 9})).toBe('exit code 9');
    expect(await probe(null)).toBe('native modules exist in Node only');
  });
});
