/** Other programs, run without a shell. */
import {spawn} from 'node:child_process';

export interface ProgramResult {
  /** null when a signal ended it or it could not be started. */
  readonly status: number | null;
  readonly stdout: string;
  readonly stderr: string;
  /** Whether there is no such program. */
  readonly missing: boolean;
}

/** @param showProgress Whether its stderr is this process's own, such as for a progress bar; it is not kept then. */
export function runProgram(
  command: string,
  args: readonly string[],
  {cwd, showProgress = false}: {cwd?: string; showProgress?: boolean} = {},
): Promise<ProgramResult> {
  return new Promise((resolve) => {
    const child = spawn(command, args, {
      cwd,
      stdio: ['ignore', showProgress ? 2 : 'pipe', showProgress ? 2 : 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout?.setEncoding('utf8').on('data', (text: string) => (stdout += text));
    child.stderr?.setEncoding('utf8').on('data', (text: string) => (stderr += text));
    child.on('error', (error: NodeJS.ErrnoException) => {
      resolve({status: null, stdout, stderr: error.message, missing: error.code === 'ENOENT'});
    });
    child.on('close', (status) => resolve({status, stdout, stderr, missing: false}));
  });
}

/** Whether a program can be started. */
export async function isProgram(command: string): Promise<boolean> {
  return (await runProgram(command, ['--version'])).status !== null;
}

/** The end of what a program said, for error texts. */
export function lastLines({stdout, stderr}: ProgramResult, count = 5): string {
  const lines = (stderr.trim() || stdout.trim()).split('\n');
  return lines.slice(-count).join('\n');
}
