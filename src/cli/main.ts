#!/usr/bin/env node
/** `npx tfjs-sage-attention <command>`: see program.ts. */
import {runCli} from './program.js';

// A reader that has seen enough (`... | head`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
  process.exit(0);
});

void runCli(process.argv.slice(2), process.stdout, process.stderr).then((code) => {
  process.exitCode = code;
});
