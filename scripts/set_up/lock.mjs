// One set-up at a time in one clone: a second process waits for the first instead of building over it.
import {mkdirSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {join} from 'node:path';
import {root, say} from './workspace.mjs';

const lockFile = join(root, '.cache', 'set-up.lock');
const POLL_MS = 250;

function isAlive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error.code === 'EPERM';
  }
}

function holder() {
  try {
    return Number(readFileSync(lockFile, 'utf8'));
  } catch {
    return null;
  }
}

/** Takes the lock or, when a process that no longer lives left it behind, takes it over. */
function tryToLock() {
  try {
    writeFileSync(lockFile, String(process.pid), {flag: 'wx'});
    return true;
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
    const pid = holder();
    // 0: just created by another process, which has not written its number yet.
    if (pid !== null && pid !== 0 && !isAlive(pid)) rmSync(lockFile, {force: true});
    return false;
  }
}

export async function withLock(work) {
  mkdirSync(join(root, '.cache'), {recursive: true});
  for (let told = false; !tryToLock();) {
    if (!told) say(`waiting for the set-up of another process (${holder() ?? 'unknown'}) ...`);
    told = true;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  try {
    return await work();
  } finally {
    rmSync(lockFile, {force: true});
  }
}
