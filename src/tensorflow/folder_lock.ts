/** One set-up of a folder at a time: a second process waits, and takes over from one that died. */
import {linkSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync} from 'node:fs';
import {dirname} from 'node:path';

const POLL_MS = 200;

/** A process by its number and, where /proc tells it, the tick at which it started: numbers are used again. */
function identityOf(pid: number): string | null {
  try {
    process.kill(pid, 0);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return null;
  }
  try {
    // Field 22; the name in field 2 may hold blanks and brackets.
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)?.split(' ') ?? [];
    return `${pid} ${fields[19] ?? ''}`;
  } catch {
    return `${pid} `;
  }
}

function contentOf(path: string): string | null {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return null;
  }
}

/** Takes the lock if it is free or its holder is dead; returns the holder's number otherwise. */
function tryToLock(path: string): number | null {
  const own = `${identityOf(process.pid) ?? process.pid}`;
  // Written beside and linked, so that a lock without content is never seen.
  const draft = `${path}.${process.pid}`;
  writeFileSync(draft, own);
  try {
    linkSync(draft, path);
    return null;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
  } finally {
    rmSync(draft, {force: true});
  }
  const holder = contentOf(path);
  if (holder === null) return 0;
  const pid = Number.parseInt(holder, 10);
  if (identityOf(pid) === holder) return pid;
  removeStale(path, holder);
  return 0;
}

/** Two processes may find the same stale lock; the one that comes second must not remove the first one's new lock. */
function removeStale(path: string, stale: string): void {
  const aside = `${path}.stale.${process.pid}`;
  try {
    renameSync(path, aside);
    if (contentOf(aside) !== stale) linkSync(aside, path);
  } catch {
    // Another process was faster.
  } finally {
    rmSync(aside, {force: true});
  }
}

/**
 * @param path File of the lock; its directory is made.
 * @param onWait Called once, with the process that holds the lock.
 */
export async function withLock<T>(
  path: string,
  onWait: (pid: number) => void,
  work: () => Promise<T>,
): Promise<T> {
  mkdirSync(dirname(path), {recursive: true});
  let told = false;
  for (let holder = tryToLock(path); holder !== null; holder = tryToLock(path)) {
    if (holder > 0 && !told) {
      onWait(holder);
      told = true;
    }
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  try {
    return await work();
  } finally {
    rmSync(path, {force: true});
  }
}
