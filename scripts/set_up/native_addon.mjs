// Step 2: the native addon, built with cmake-js when the C++ sources, their build description or the Node headers
// changed since the last build. Offline: `binary.napi_versions` in package.json keeps cmake-js from downloading.
import {existsSync, readFileSync} from 'node:fs';
import {availableParallelism} from 'node:os';
import {join} from 'node:path';
import {
  dependency,
  hashOf,
  isOnPath,
  isStamped,
  listFiles,
  root,
  runQuietly,
  say,
  secondsSince,
  SetUpError,
  writeStamp,
} from './workspace.mjs';

const addon = join(root, 'build', 'Release', 'sage_attention.node');

/** The addon that the last build left, null when there is none. */
export function builtAddon() {
  return existsSync(addon) ? addon : null;
}

function hashOfSources() {
  const sources = listFiles(
    ['CMakeLists.txt', 'cmake', 'native', 'csrc'],
    (name) => !name.startsWith('csrc/test/') && !name.endsWith('.md'),
  );
  const headers = ['node-addon-api', 'node-api-headers'].map((name) =>
    readFileSync(dependency(name, 'package.json'), 'utf8'),
  );
  return hashOf(sources, process.platform, process.arch, ...headers);
}

/** CMake refuses a build folder that was made for another source folder (a moved or copied clone). */
function cacheIsOfThisFolder() {
  try {
    const cache = readFileSync(join(root, 'build', 'CMakeCache.txt'), 'utf8');
    return cache.includes(`CMAKE_HOME_DIRECTORY:INTERNAL=${root}\n`);
  } catch {
    return false;
  }
}

/** What is missing on this machine to build C++, in words; null when nothing is. */
function missingTool() {
  if (!isOnPath('cmake')) return 'cmake is not on the path (Debian, Ubuntu: apt-get install cmake)';
  const compilers = [process.env.CXX, 'c++', 'g++', 'clang++'].filter(Boolean);
  if (process.platform !== 'win32' && !compilers.some(isOnPath)) {
    return 'no C++ compiler is on the path (Debian, Ubuntu: apt-get install g++)';
  }
  return null;
}

export function prepareNativeAddon() {
  const stamp = join(root, 'build', '.sage-stamp');
  const hash = hashOfSources();
  if (builtAddon() !== null && isStamped(stamp, hash)) return;
  const missing = missingTool();
  if (missing !== null) throw new SetUpError(`The native addon cannot be built: ${missing}.`);

  const start = performance.now();
  say('building the native addon (cmake-js) ...');
  const cmakeJs = dependency('cmake-js', 'bin', 'cmake-js');
  const args = ['--log-level', 'error', '--parallel', String(availableParallelism())];
  // `build` alone configures only when there is no cache, so a configuration that failed would never be mended.
  const commands = cacheIsOfThisFolder() ? ['configure', 'build'] : ['rebuild'];
  const succeeded = commands.every(
    (command) => runQuietly(process.execPath, [cmakeJs, command, ...args]) === 0,
  );
  if (!succeeded || builtAddon() === null) {
    throw new SetUpError(
      'The native addon did not build (messages of CMake and the compiler are above).',
    );
  }
  writeStamp(stamp, hash);
  say(`native addon built in ${secondsSince(start)}`);
}
