// What runs tfjs-core's own tests (test/tfjs_core), in a package of its own so that nobody installs it by accident.
import {spawnSync} from 'node:child_process';
import {join} from 'node:path';
import {hashOf, isStamped, root, say, writeStamp} from './workspace.mjs';

const folder = join(root, 'test', 'tfjs_core');

/** Installs the locked packages if that is still to do; returns npm's exit code. */
export function prepareTfjsCoreSuite() {
  const stamp = join(folder, 'node_modules', '.sage-stamp');
  const lock = hashOf([join(folder, 'package-lock.json')], process.platform, process.arch);
  if (isStamped(stamp, lock)) return 0;
  say('installing jasmine and esbuild into test/tfjs_core ...');
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error'];
  const {status} = spawnSync('npm', args, {cwd: folder, stdio: ['ignore', 2, 2]});
  if (status === 0) writeStamp(stamp, lock);
  return status ?? 1;
}
