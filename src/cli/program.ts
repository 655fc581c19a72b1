/** The command line: commands, options, and how results and failures reach the streams. */
import {writeFileSync} from 'node:fs';
import {Command, CommanderError} from 'commander';
import {platform} from '#platform';
import {PRECISIONS} from '../numerics/recipes.js';
import {
  ACCURACY_DISTRIBUTIONS,
  ACCURACY_ENGINES,
  runAccuracy,
  type AccuracyOptions,
} from './accuracy.js';
import {amount, choiceOf, classes, count, counts, listOf, seed} from './arguments.js';
import {BENCH_PRECISIONS, runBench, type BenchBody, type BenchOptions} from './bench/bench.js';
import {parseCases} from './bench/bench_cases.js';
import {runGpuBench, type GpuBenchBody} from './bench/gpu.js';
import {runModelsBench, type ModelsBenchBody} from './bench/models.js';
import {CliError, messageOf} from './cli_error.js';
import {runDemo, type DemoOptions} from './demo.js';
import {runDoctor} from './doctor.js';
import {runInspect} from './inspect.js';
import {describeMachine} from './machine.js';
import {type ModelOptions, runModel} from './model.js';
import {MODEL_NAMES, type ModelName} from './model_tasks.js';
import {makeReport} from './report.js';
import {runRewrite, type RewriteOptions} from './rewrite.js';
import {runSetupTensorflow, type SetupTensorflowOptions} from './setup_tensorflow.js';
import {divertLogs, openTerminal, type Terminal, type TextSink} from './terminal.js';
import {CLI_BACKENDS} from './tfjs_backend.js';

const EXAMPLES = `
Examples:
  $ npx tfjs-sage-attention demo
  $ npx tfjs-sage-attention demo --file my_code.js --precision int8_fp8,fp4
  $ npx tfjs-sage-attention model bert --model ./all-MiniLM-L6-v2 --text 'one text' 'another'
  $ npx tfjs-sage-attention doctor
  $ npx tfjs-sage-attention accuracy --engine native --distribution k_bias
  $ npx tfjs-sage-attention bench --threads 1,2 --case d64_n1024
  $ npx tfjs-sage-attention demo --json > demo.json
  $ npx tfjs-sage-attention setup-tensorflow

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
    // After a command's name, --version is the command's own.
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => void stdout.write(text),
      writeErr: (text) => void stderr.write(text),
    });

  const add = <Options, Arguments extends readonly unknown[] = []>(
    name: string,
    summary: string,
    run: (options: Options, terminal: Terminal, ...given: Arguments) => Promise<object>,
  ): Command =>
    program
      .command(name)
      .description(summary)
      .option('--json', 'print one JSON object on stdout and nothing else there')
      .option('--json-file <file>', 'write that object to a file, whatever is printed')
      // Arguments, then options, then the command itself.
      .action(async (...all: unknown[]) => {
        const options = all.at(-2) as Options & {json?: boolean; jsonFile?: string};
        const json = options.json === true;
        const given = all.slice(0, -2) as unknown as Arguments;
        const body = await run(options, openTerminal(json, stdout, stderr), ...given);
        const report = `${JSON.stringify(makeReport(describeMachine(), body))}\n`;
        if (options.jsonFile !== undefined) writeFileSync(options.jsonFile, report);
        if (json) stdout.write(report);
      });

  const precisions = 'recipes to run, with commas between them';
  add<DemoOptions>('demo', 'a trained model with exact attention and with every recipe', runDemo)
    .option('--model <directory>', 'a GPT-2 on bytes in Hugging Face files (default: js-gpt)')
    .option('--file <file>', 'text to predict (default: a source file of this project)')
    .option('--precision <names>', `${precisions} (default: all)`, listOf(PRECISIONS))
    .option(
      '--backend <name>',
      'tfjs backend: wasm, cpu or tensorflow',
      choiceOf(CLI_BACKENDS),
      'wasm',
    )
    .option('--windows <count>', 'windows of 2,048 tokens to score', count, 1);

  add<ModelOptions, [ModelName]>('model', 'a model of yours, exact and with recipes', runModel)
    .argument('<name>', MODEL_NAMES.join(', '), choiceOf(MODEL_NAMES))
    .option('--model <directory>', 'its files as Hugging Face has them')
    .option('--precision <names>', `${precisions} (default: auto)`, listOf(PRECISIONS))
    .option(
      '--backend <name>',
      'tfjs backend: wasm, cpu or tensorflow',
      choiceOf(CLI_BACKENDS),
      'wasm',
    )
    .option('--text <text...>', 'bert: texts to embed')
    .option('--image <file>', 'vit: image to classify; PPM, or any with the package sharp')
    .option('--prompt <text>', 'llama, gpt2: text to continue')
    .option('--tokens <count>', 'llama, gpt2: most tokens to write (default: 48)', count)
    .option(
      '--temperature <value>',
      'llama, gpt2: 0 takes the likeliest token (default: 0)',
      amount,
    )
    .option('--class <numbers>', 'dit: classes, with commas between them (default: 0)', classes)
    .option('--steps <count>', 'dit: steps from noise to image (default: 25)', count)
    .option('--guidance <value>', 'dit: strength of the class; 1 = as it is (default: 4)', amount)
    .option('--seed <number>', 'llama, gpt2, dit: seed of what is drawn (default: 0)', seed);

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

  add<BenchCommandOptions>('bench', 'time of one call by recipe, beside other software', bench)
    .option('--models', 'whole graph models instead: as tfjs runs them, and replaced')
    .option('--peers', 'compare with ONNX Runtime (a clone installs it) and plain tfjs')
    .option('--torch [python]', 'compare with PyTorch too (a clone installs it, or by this python)')
    .option('--threads <counts>', 'numbers of threads (default: 1; with peers: and all)', counts)
    .option('--case <names>', 'such as h12_d64_n1024_full, or parts of names', parseCases)
    .option(
      '--precision <names>',
      `${precisions} (default: ${BENCH_PRECISIONS.join(',')})`,
      listOf(PRECISIONS),
    )
    .option('--rounds <count>', 'samples of each contender (default: 5)', count)
    .option('--gpu', 'the CUDA kernels: from device memory, and from arrays and back')
    .option('--tokens <counts>', 'with --gpu: lengths (default: 1,024 to 32,768)', counts)
    .option('--write', 'with --gpu: writes the table to docs/cuda_measured.md');

  add<SetupTensorflowOptions>(
    'setup-tensorflow',
    'a current TensorFlow under @tensorflow/tfjs-node',
    runSetupTensorflow,
  )
    .option('--gpu', 'the build that can use NVIDIA GPUs')
    .option('--version <version>', 'version of TensorFlow (default: 2.21.0)')
    .option('--wheel <file>', 'a wheel that is here already (default: fetched by pip)')
    .option('--site-packages <directory>', 'use the TensorFlow of a Python environment in place')
    .option('--dir <directory>', 'folder to make (default: .sage-tensorflow in the project)')
    .option('--cache <directory>', 'where wheels are kept (default: ~/.cache/tfjs-sage-attention)')
    .option('--strip', 'leave out symbol tables: 200 MB less')
    .option('--remove', 'take the folder away again');

  const graphFile = 'model.json of a tfjs graph model';
  add<object, [string]>('inspect', 'the attentions of a graph model', runInspect).argument(
    '<model.json>',
    graphFile,
  );

  add<RewriteOptions, [string, string]>(
    'rewrite',
    'a graph model with its attentions replaced',
    runRewrite,
  )
    .argument('<model.json>', graphFile)
    .argument('<out>', 'directory, or model.json, to write')
    .option('--precision <name>', 'recipe of all (default: auto)', choiceOf(PRECISIONS));
  return program;
}

interface BenchCommandOptions extends BenchOptions {
  readonly models?: boolean | undefined;
  readonly gpu?: boolean | undefined;
  readonly tokens?: readonly number[] | undefined;
  readonly write?: boolean | undefined;
}

/** `bench`: single calls, on the GPU with `--gpu`, or whole models. */
function bench(
  options: BenchCommandOptions,
  terminal: Terminal,
): Promise<BenchBody | ModelsBenchBody | GpuBenchBody> {
  const {models, gpu, precision, rounds} = options;
  if (gpu === true) {
    if (models === true || options.peers === true || options.case !== undefined) {
      throw new CliError(
        '--gpu has cases of its own, and PyTorch as its only peer.',
        'Choose among them by --tokens and --precision; --torch compares.',
      );
    }
    return runGpuBench(options, terminal);
  }
  if (options.tokens !== undefined || options.write === true) {
    throw new CliError(
      '--tokens and --write belong to --gpu.',
      'Without it --case picks sizes, such as h12_d64_n2048_full.',
    );
  }
  if (models !== true) return runBench(options, terminal);
  const {peers, torch, threads, case: cases} = options;
  if ([peers, torch, threads, cases].some((option) => option !== undefined)) {
    throw new CliError(
      '--models has models of its own, and plain tfjs as its only peer.',
      'It takes --precision and --rounds.',
    );
  }
  return runModelsBench({precision: precision?.[0], rounds}, terminal);
}

function packageVersion(): string {
  const {packageRoot} = platform;
  const manifest =
    packageRoot === null ? null : platform.readText(platform.joinPath(packageRoot, 'package.json'));
  if (manifest === null) throw new CliError('The package.json of this package is not found.');
  return (JSON.parse(manifest) as {version: string}).version;
}
