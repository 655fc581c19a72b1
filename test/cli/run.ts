/** Runs the command line in this process and keeps what it wrote. */
import {ISAS} from '../../src/runtime/config.js';
import {runCli} from '../../src/cli/program.js';

export interface CliResult {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Streams that are no terminals. */
export async function run(...args: string[]): Promise<CliResult> {
  const written = {stdout: '', stderr: ''};
  const sink = (name: 'stdout' | 'stderr') => ({
    write: (text: string) => {
      written[name] += text;
    },
  });
  const code = await runCli(args, sink('stdout'), sink('stderr'));
  return {code, ...written};
}

/** The object of `--json`: one line, nothing before or after it. */
export async function runJson(...args: string[]): Promise<Record<string, unknown>> {
  const {code, stdout, stderr} = await run(...args, '--json');
  if (code !== 0) throw new Error(`exit code ${code}: ${stderr}`);
  expect(stdout.endsWith('}\n')).toBe(true);
  expect(stdout.split('\n').length).toBe(2);
  const report = JSON.parse(stdout) as Record<string, unknown>;
  expect(report['schema']).toBe(1);
  const {isa, gpu, driver, ...machine} = report['machine'] as Record<string, unknown>;
  // null without a GPU that can be used, and without a driver.
  for (const text of [gpu, driver]) expect(text === null || typeof text === 'string').toBe(true);
  expect(machine).toEqual(MACHINE);
  // null without a native engine.
  expect(isa === null || (ISAS as readonly unknown[]).includes(isa)).toBe(true);
  return report;
}

/** Fields and types that every report promises, beside `isa`. */
const MACHINE = {
  cpu: expect.any(String) as string,
  cores: expect.any(Number) as number,
  node: process.versions.node,
};
