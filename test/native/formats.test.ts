/** @file The number formats in C++ (csrc/formats) against those in TypeScript, bit for bit. */

import {execFileSync, spawnSync} from 'node:child_process';
import {closeSync, mkdtempSync, openSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';

import {
  INT8_MAX,
  NUMBER_FORMATS,
  e8m0RoundUp,
  encodeE8m0RoundUp,
  roundHalfAway,
  roundHalfEven,
  roundToIntHalfAway,
} from '../../src/numerics/formats.js';
import {formatInputs} from '../numerics/format_oracle.js';

const ROOT = join(__dirname, '../..');
const INPUT_COUNT = 2 ** 21;
const MAX_REPORTED = 5;

/** Plain, as every machine compiles it, and vectorised for this one. */
const BUILDS = {
  plain: ['-O1'],
  vectorised: ['-O3', '-march=native'],
} as const;

// The checker is compiled here, so that this runs without the addon; any C++17 compiler will do.
const compiler = ['g++', 'clang++', 'c++'].find(
  (name) => spawnSync(name, ['--version']).status === 0,
);
const describeWithCompiler = compiler === undefined ? describe.skip : describe;

const patterns = formatInputs(INPUT_COUNT);
const inputs = new Float32Array(patterns.buffer);

interface Comparison {
  readonly name: string;
  readonly encode?: (x: number) => number;
  readonly round: (x: number) => number;
}

const COMPARISONS: readonly Comparison[] = [
  ...Object.values(NUMBER_FORMATS),
  {name: 'e8m0_round_up', encode: encodeE8m0RoundUp, round: e8m0RoundUp},
  {name: 'half_even', round: roundHalfEven},
  {name: 'half_away', round: roundHalfAway},
  {name: 'int8_half_away', round: (x) => roundToIntHalfAway(x, INT8_MAX)},
];

describeWithCompiler.each(Object.entries(BUILDS))('C++ formats, %s', (_build, flags) => {
  let folder: string;
  let program: string;
  let inputFile: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'sage-formats-'));
    program = join(folder, 'formats_table');
    inputFile = join(folder, 'inputs.bin');
    writeFileSync(inputFile, patterns);
    const source = join(ROOT, 'csrc/test/formats_table.cc');
    const warnings = ['-Wall', '-Wextra', '-Werror'];
    const common = ['-std=c++17', '-ffp-contract=off', `-I${join(ROOT, 'csrc')}`, '-o', program];
    execFileSync(compiler!, [...flags, ...warnings, ...common, source]);
  }, 60_000);

  afterAll(() => rmSync(folder, {recursive: true}));

  function run(verb: 'encode' | 'round', name: string): Uint32Array {
    const input = openSync(inputFile, 'r');
    try {
      const {status, stdout, stderr} = spawnSync(program, [verb, name], {
        stdio: [input, 'pipe', 'pipe'],
        maxBuffer: 8 * INPUT_COUNT,
      });
      if (status !== 0) throw new Error(`${verb} ${name}: ${stderr.toString()}`);
      const outputs = new Uint32Array(stdout.buffer.slice(stdout.byteOffset), 0, INPUT_COUNT);
      expect(stdout.byteLength).toBe(4 * INPUT_COUNT);
      return outputs;
    } finally {
      closeSync(input);
    }
  }

  const describeInput = (i: number): string =>
    `${inputs[i]} (0x${patterns[i]!.toString(16).padStart(8, '0')})`;

  test.each(COMPARISONS.map((comparison) => [comparison.name, comparison] as const))(
    '%s',
    (name, {encode, round}) => {
      const wrong: string[] = [];
      if (encode !== undefined) {
        const codes = run('encode', name);
        for (let i = 0; i < INPUT_COUNT && wrong.length < MAX_REPORTED; i++) {
          const code = encode(inputs[i]!);
          if (code !== codes[i]) {
            wrong.push(`${describeInput(i)}: TypeScript ${code}, C++ ${codes[i]}`);
          }
        }
      }
      const roundedPatterns = run('round', name);
      const rounded = new Float32Array(roundedPatterns.buffer);
      const own = new Float32Array(1);
      const ownPattern = new Uint32Array(own.buffer);
      for (let i = 0; i < INPUT_COUNT && wrong.length < MAX_REPORTED; i++) {
        own[0] = round(inputs[i]!);
        const bothNan = own[0] !== own[0] && rounded[i] !== rounded[i];
        if (ownPattern[0] !== roundedPatterns[i] && !bothNan) {
          wrong.push(`${describeInput(i)}: TypeScript ${own[0]}, C++ ${rounded[i]}`);
        }
      }
      expect(wrong).toEqual([]);
    },
  );

  test('every code of every format decodes to the same bits', () => {
    const value = new Float32Array(1);
    const pattern = new Uint32Array(value.buffer);
    for (const {name, bits, decode} of Object.values(NUMBER_FORMATS)) {
      const lines = execFileSync(program, ['decode', name], {encoding: 'utf8'}).trimEnd().split('\n');
      expect(lines.length).toBe(2 ** bits);
      const wrong = lines.filter((line, code) => {
        const [printedCode, printedPattern] = line.split(' ');
        pattern[0] = parseInt(printedPattern!, 16);
        const theirs = value[0];
        value[0] = decode(code);
        const same =
          value[0] !== value[0]
            ? theirs !== theirs
            : pattern[0] === parseInt(printedPattern!, 16);
        return Number(printedCode) !== code || !same;
      });
      expect([name, wrong.slice(0, MAX_REPORTED)]).toEqual([name, []]);
    }
  });

  test('unknown formats and verbs are refused', () => {
    expect(spawnSync(program, ['encode', 'e9m9']).status).toBe(2);
    expect(spawnSync(program, ['decode', 'half_even']).status).toBe(2);
  });
});
