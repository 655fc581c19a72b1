/** doctor, accuracy and bench: the objects that --json promises, and what they find. */
import {mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import * as tf from '@tensorflow/tfjs-core';
import {ACCURACY_CASES, type AccuracyCase} from '../../src/accuracy/accuracy_cases.js';
import {runAccuracy, type AccuracyRow} from '../../src/cli/accuracy.js';
import {
  type Check,
  checkAddon,
  guarded,
  type CandidateReport,
} from '../../src/cli/doctor_checks.js';
import {checkAttention} from '../../src/cli/doctor_attention.js';
import {openTerminal} from '../../src/cli/terminal.js';
import {nativeEngine} from '../../src/engines/native.js';
import {PRECISIONS} from '../../src/numerics/recipes.js';
import type {EngineInfo} from '../../src/runtime/info.js';
import {run, runJson} from './run.js';

const quiet = openTerminal(true, {write: () => undefined}, {write: () => undefined});
const hasNative = nativeEngine().engine !== null;

describe('doctor', () => {
  it('tells engines, choices and checks as one object', async () => {
    const report = await runJson('doctor');
    expect(Object.keys(report)).toEqual([
      'schema',
      'machine',
      'engines',
      'choices',
      'checks',
      'tensorflow',
      'cuda',
    ]);
    const engines = report['engines'] as EngineInfo[];
    expect(engines.map(({name}) => name)).toEqual(['native', 'cuda', 'typescript', 'composition']);
    for (const engine of engines) {
      expect(engine).toEqual({
        name: expect.any(String) as string,
        available: expect.any(Boolean) as boolean,
        reason: expect.any(String) as string,
        details: expect.any(Object) as object,
      });
      if (!engine.available) continue;
      const {attention} = engine.details as {attention: object};
      expect(attention).toEqual({
        ok: true,
        message: expect.stringMatching(/^works: max error /) as string,
        fix: null,
      });
    }
    const choices = report['choices'] as Record<string, unknown>[];
    expect(
      choices.filter(({backend}) => backend === 'wasm').map(({precision}) => precision),
    ).toEqual(['auto', ...PRECISIONS]);
    for (const choice of choices) {
      expect(Object.keys(choice)).toEqual(['backend', 'precision', 'engine', 'reason']);
    }
    const checks = report['checks'] as Check[];
    const model = checks.find(({name}) => name === 'model js-gpt');
    expect(model).toMatchObject({status: 'ok', fix: null});
    expect(checks.filter(({status}) => status === 'failed')).toEqual([]);
  }, 60_000);

  it('prints the same for people', async () => {
    const {code, stdout} = await run('doctor');
    expect(code).toBe(0);
    for (const part of ['Checks', 'Engines', 'Who computes what', 'typescript', 'every recipe']) {
      expect(stdout).toContain(part);
    }
    expect(stdout).not.toContain('FAILED');
  }, 60_000);

  it('answers even where asking goes wrong', async () => {
    const broken = await guarded('thing', () => {
      throw Object.assign(new Error('no luck'), {hint: 'Try again.'});
    });
    expect(broken).toEqual({
      name: 'thing',
      status: 'failed',
      message: 'no luck',
      fix: 'Try again.',
    });
  });

  const candidate = (source: CandidateReport['source'], ok: boolean): CandidateReport => ({
    source,
    path: '/x/sage_attention.node',
    ok,
    message: ok ? 'loads' : 'it is truncated',
  });

  it.each([
    [[candidate('build/Release', false), candidate('platform package', true)], 'ok', null],
    [[candidate('build/Release', false)], 'warning', 'npm run build:native'],
    [[], 'warning', 'npm run build:native'],
    [
      [candidate('SAGE_NATIVE_PATH', false), candidate('build/Release', true)],
      'failed',
      'Correct SAGE_NATIVE_PATH, or unset it.',
    ],
  ])('addon candidates %#: %s', (candidates, status, fix) => {
    expect(checkAddon(candidates)).toMatchObject({status, fix});
  });

  it('notices an engine that computes wrongly', () => {
    const {engine} = nativeEngine();
    if (engine === null) return;
    const forward = jest.spyOn(engine, 'forward').mockImplementation((_, {o}) => void o.fill(0.5));
    try {
      expect(checkAttention('native')).toMatchObject({
        ok: false,
        message: expect.stringMatching(/^computes wrongly/) as string,
      });
    } finally {
      forward.mockRestore();
    }
    expect(checkAttention('native').ok).toBe(true);
  });
});

describe('accuracy', () => {
  const tiny: AccuracyCase = {
    distribution: 'k_bias',
    batch: 1,
    heads: 2,
    kvHeads: 1,
    qLen: 17,
    kvLen: 129,
    headDim: 16,
    causal: false,
  };

  it('gives a row for each engine, recipe and case', async () => {
    const {rows} = await runAccuracy({cases: [tiny, {...tiny, causal: true}]}, quiet);
    expect(rows.length).toBe((hasNative ? 2 : 1) * 2 * PRECISIONS.length);
    for (const {relativeL1, cosine, ...row} of rows) {
      expect(row).toEqual({
        ...tiny,
        causal: expect.any(Boolean) as boolean,
        engine: expect.stringMatching(/^(native|typescript)$/) as string,
        precision: expect.any(String) as string,
        rmse: expect.any(Number) as number,
        maxAbs: expect.any(Number) as number,
      });
      expect(cosine).toBeGreaterThan(0.9);
      expect(relativeL1).toBeLessThan(row.precision === 'exact' ? 1e-5 : 0.35);
      expect(relativeL1).toBeGreaterThan(row.precision === 'exact' ? 0 : 1e-5);
    }
  });

  it('--json has the rows that the filters leave', async () => {
    const report = await runJson(
      ...['accuracy', '--engine', 'typescript', '--distribution', 'qv_bias,peaky'],
      ...['--precision', 'exact,fp4'],
    );
    const rows = report['rows'] as AccuracyRow[];
    expect(rows.map((row) => `${row.engine} ${row.distribution} ${row.precision}`)).toEqual([
      'typescript qv_bias exact',
      'typescript qv_bias fp4',
      'typescript peaky exact',
      'typescript peaky fp4',
    ]);
    expect(Object.keys(rows[0] ?? {}).sort()).toEqual(
      [
        ...['engine', 'precision', 'distribution', 'batch', 'heads', 'kvHeads', 'qLen', 'kvLen'],
        ...['headDim', 'causal', 'cosine', 'relativeL1', 'rmse', 'maxAbs'],
      ].sort(),
    );
  }, 30_000);

  it('prints a table for each engine and says what was left out', async () => {
    const {code, stdout, stderr} = await run(
      ...['accuracy', '--engine', 'typescript', '--distribution', 'k_bias', '--precision', 'int8'],
    );
    expect(code).toBe(0);
    expect(stdout).toContain('Engine typescript: relative L1 against float64');
    expect(stdout).toContain('worst cosine');
    expect(stderr).toContain('--full runs all');
    expect(ACCURACY_CASES.some(({qLen}) => stdout.includes(`N${qLen} `))).toBe(false);
  }, 30_000);
});

describe('bench', () => {
  it('gives a row for each recipe and number of threads', async () => {
    const before = tf.memory().numTensors;
    const report = await runJson(
      ...['bench', '--case', 'h1_d16_n17_causal,h2_d24_n33_full', '--rounds', '1'],
      ...['--precision', 'exact,int8', '--threads', '1,2'],
    );
    const rows = report['rows'] as Record<string, unknown>[];
    expect(rows.map((row) => [row['case'], row['precision'], row['threads']])).toEqual(
      [1, 2].flatMap((threads) =>
        ['h1_d16_n17_causal', 'h2_d24_n33_full'].flatMap((name) =>
          ['exact', 'int8'].map((precision) => [name, precision, threads]),
        ),
      ),
    );
    for (const row of rows) {
      expect(row).toEqual({
        case: expect.any(String) as string,
        engine: hasNative ? 'native' : 'typescript',
        precision: expect.any(String) as string,
        threads: expect.any(Number) as number,
        ms: expect.any(Number) as number,
        minMs: expect.any(Number) as number,
        gflops: expect.any(Number) as number,
        ratioToBestPeer: null,
      });
      expect(row['minMs']).toBeLessThanOrEqual(row['ms'] as number);
    }
    const [{ms, gflops}] = rows as [{ms: number; gflops: number}];
    expect(gflops).toBeCloseTo((4 * 17 * 17 * 16) / (ms * 1e6), 9);
    expect(tf.memory().numTensors).toBe(before);
  }, 30_000);

  it('says how to get the peers where they cannot be loaded', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'sage-peers-'));
    writeFileSync(join(directory, 'package.json'), '{}');
    const cwd = jest.spyOn(process, 'cwd').mockReturnValue(directory);
    try {
      const {loadOrt} = await import('../../src/cli/bench/onnxruntime.js');
      expect(() => loadOrt(quiet, null)).toThrow(
        expect.objectContaining({
          message: expect.stringContaining(directory) as string,
          hint: expect.stringContaining('npm install --ignore-scripts onnxruntime-node@') as string,
        }),
      );
    } finally {
      cwd.mockRestore();
      rmSync(directory, {recursive: true});
    }
  });
});
