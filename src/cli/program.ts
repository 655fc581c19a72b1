/** The command line: commands, options, and how results and failures reach the streams. */
import {Command, CommanderError} from 'commander';
import {platform} from '#platform';
import {PRECISIONS} from '../numerics/recipes.js';
import {
  ACCURACY_DISTRIBUTIONS,
  ACCURACY_ENGINES,
  runAccuracy,
  type AccuracyOptions,
} from './accuracy.js';
import {choiceOf, count, counts, listOf} from './arguments.js';
import {BENCH_PRECISIONS, runBench, type BenchOptions} from './bench/bench.js';
import {parseCases} from './bench/bench_cases.js';
import {CliError, messageOf} from './cli_error.js';
import {runDemo, type DemoOptions} from './demo.js';
import {runDoctor} from './doctor.js';
import {describeMachine} from './machine.js';
import {makeReport} from './report.js';
import {divertLogs, openTerminal, type Terminal, type TextSink} from './terminal.js';
import {CLI_BACKENDS} from './tfjs_backend.js';

const EXAMPLES = `
Examples:
  $ npx tfjs-sage-attention demo
  $ npx tfjs-sage-attention demo --file my_code.js --precision int8_fp8,fp4
  $ npx tfjs-sage-attention doctor
  $ npx tfjs-sage-attention accuracy --engine native --distribution k_bias
  $ npx tfjs-sage-attention bench --threads 1,2 --case d64_n1024
  $ npx tfjs-sage-attention demo --json > demo.json

In a clone: npm run demo -- --precision fp4, and npm run --silent demo -- --json.`;

/**
 * Runs a command.
 *
 * @param args What follows the program's name.
 * @returns The exit code: 0 only if everything asked for was done.
 */
export async function runCli(
  args: readonly string[],
  stdout: TextSink,
  stderr: TextSink,
): Promise<number> {
  const restoreLogs = divertLogs(stderr);
  try {
    await buildProgram(stdout, stderr).parseAsync(args, {from: 'user'});
    return 0;
  } catch (error) {
    // commander has told its own errors already; help and version end this way too.
    if (error instanceof CommanderError) return error.exitCode;
    stderr.write(`error: ${messageOf(error)}\n`);
    return 1;
  } finally {
    restoreLogs();
  }
}

function buildProgram(stdout: TextSink, stderr: TextSink): Command {
  const program = new Command('tfjs-sage-attention')
    .description('SageAttention for TensorFlow.js: what it computes, how well and how fast, here.')
    .version(packageVersion())
    .addHelpText('after', EXAMPLES)
    .showHelpAfterError('--help lists commands and options.')
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void stdout.write(text),
      writeErr: (text) => void stderr.write(text),
    });

  const add = <Options>(
    name: string,
    summary: string,
    run: (options: Options, terminal: Terminal) => Promise<object>,
  ): Command =>
    program
      .command(name)
      .description(summary)
      .option('--json', 'print one JSON object on stdout and nothing else there')
      .action(async (options: Options & {json?: boolean}) => {
        const json = options.json === true;
        const body = await run(options, openTerminal(json, stdout, stderr));
        if (json) stdout.write(`${JSON.stringify(makeReport(describeMachine(), body))}\n`);
      });

  const precisions = 'recipes to run, with commas between them';
  add<DemoOptions>('demo', 'a trained model with exact attention and with every recipe', runDemo)
    .option('--model <directory>', 'a GPT-2 on bytes in Hugging Face files (default: js-gpt)')
    .option('--file <file>', 'text to predict (default: a source file of this project)')
    .option('--precision <names>', `${precisions} (default: all)`, listOf(PRECISIONS))
    .option('--backend <name>', 'tfjs backend: wasm or cpu', choiceOf(CLI_BACKENDS), 'wasm')
    .option('--windows <count>', 'windows of 2,048 tokens to score', count, 1);

  add('doctor', 'which engines run here and why, and what to do where one does not', runDoctor);

  add<AccuracyOptions>('accuracy', 'every recipe and engine against float64', runAccuracy)
    .option('--engine <names>', 'native, typescript', listOf(ACCURACY_ENGINES))
    .option('--precision <names>', `${precisions} (default: all)`, listOf(PRECISIONS))
    .option(
      '--distribution <names>',
      'inputs to try (default: all)',
      listOf(ACCURACY_DISTRIBUTIONS),
    )
    .option('--full', 'the large cases on the TypeScript engine too (minutes)');

  add<BenchOptions>('bench', 'time of one call by recipe, beside other software', runBench)
    .option('--peers', 'compare with ONNX Runtime (a clone installs it) and plain tfjs')
    .option('--threads <counts>', 'numbers of threads (default: 1)', counts)
    .option('--case <names>', 'such as h12_d64_n1024_full, or parts of names', parseCases)
    .option(
      '--precision <names>',
      `${precisions} (default: ${BENCH_PRECISIONS.join(',')})`,
      listOf(PRECISIONS),
    )
    .option('--rounds <count>', 'samples of each contender (default: 5)', count);
  return program;
}

function packageVersion(): string {
  const {packageRoot} = platform;
  const manifest =
    packageRoot === null ? null : platform.readText(platform.joinPath(packageRoot, 'package.json'));
  if (manifest === null) throw new CliError('The package.json of this package is not found.');
  return (JSON.parse(manifest) as {version: string}).version;
}
