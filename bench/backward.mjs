// The gradient of attention in float32: the native engine against torch's own SDPA backward on the CPU, in turns.
// Reads the built package and addon (`npm run build:native`, `npm run build`).
//   node bench/backward.mjs --python <a python with torch> [--threads 1] [--isa avx512_bf16] [--rounds 9]
//     [--tokens 512,1024,2048,4096] [--shapes 12x64,16x128] [--json]
//
// Each side keeps its own process; one call at a time, who begins changes from round to round, the first two rounds are
// outside the clock. One thread is timed by processor time, more by the wall clock; medians and least times. Both sides
// get the same numbers, and their gradients are compared before anything is timed. GFLOP/s count 10·H·N²·D (five products)
// in full under causality too. `--isa avx2` holds torch to AVX2 as well.
import {spawn} from 'node:child_process';
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {tmpdir} from 'node:os';
import {join} from 'node:path';
import {createInterface} from 'node:readline';
import {parseArgs} from 'node:util';

const require = createRequire(import.meta.url);
const {configureSageAttention} = require('../dist/cjs/src/index.js');
const {nativeEngine} = require('../dist/cjs/src/engines/native.js');
const {resolveRecipe} = require('../dist/cjs/src/numerics/recipes.js');

const {values: options} = parseArgs({
  options: {
    python: {type: 'string', default: 'python3'},
    threads: {type: 'string', default: '1'},
    isa: {type: 'string', default: 'auto'},
    rounds: {type: 'string', default: '9'},
    tokens: {type: 'string', default: '512,1024,2048,4096'},
    shapes: {type: 'string', default: '12x64,16x128'},
    json: {type: 'boolean', default: false},
  },
});
const threads = Number(options.threads);
const rounds = Number(options.rounds);
const WARM_UP = 2;
/** Gradients of two float32 implementations differ by some 1e-6. */
const TOLERANCE = 1e-4;

configureSageAttention({threads, isa: options.isa});
const {engine, reason} = nativeEngine();
if (engine === null) throw new Error(`the native engine is not available: ${reason}`);

/** torch on its side of a pipe: a line with JSON asks, a line with JSON answers. */
function startTorch() {
  const environment = {...process.env};
  if (options.isa === 'avx2') {
    environment.ATEN_CPU_CAPABILITY = 'avx2';
    environment.MKL_ENABLE_INSTRUCTIONS = 'AVX2';
    environment.ONEDNN_MAX_CPU_ISA = 'AVX2';
  }
  const script = join(import.meta.dirname, 'peers', 'torch_backward.py');
  const child = spawn(options.python, [script, String(threads)], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: environment,
  });
  const lines = createInterface({input: child.stdout})[Symbol.asyncIterator]();
  return {
    async ask(question) {
      child.stdin.write(`${JSON.stringify(question)}\n`);
      const {value, done} = await lines.next();
      if (done) throw new Error(`${options.python} ended; does it have torch?`);
      return JSON.parse(value);
    },
    end: () => child.stdin.end(),
  };
}

function normal(count) {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    values[i] = Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  }
  return values;
}

function makeCall(heads, tokens, dim, causal) {
  const strides = {batch: heads * tokens * dim, head: tokens * dim, token: dim};
  const problem = {
    ...{batch: 1, qHeads: heads, kvHeads: heads, qLen: tokens, kvLen: tokens},
    ...{qkDim: dim, vDim: dim, q: strides, k: strides, v: strides, o: strides},
    ...{scale: 1 / Math.sqrt(dim), causal: causal ? 'top_left' : 'none', windowLeft: -1},
    ...{windowRight: causal ? 0 : -1, maskKind: 'none', wantLse: true},
    mask: {batch: 0, head: 0, query: 0, key: 0},
    recipe: resolveRecipe('exact', {}),
  };
  const count = heads * tokens * dim;
  const [q, k, v, dO] = [0, 1, 2, 3].map(() => normal(count));
  const [o, dQ, dK, dV] = [0, 1, 2, 3].map(() => new Float32Array(count));
  const lse = new Float32Array(heads * tokens);
  engine.forward(problem, {q, k, v, mask: null, o, lse});
  const buffers = {q, k, v, mask: null, o, lse, dO, dLse: null, dQ, dK, dV, dMask: null};
  return {buffers, run: () => engine.backward(problem, buffers)};
}

function timed(run) {
  if (threads === 1) {
    const start = process.cpuUsage();
    run();
    const {user, system} = process.cpuUsage(start);
    return (user + system) / 1e3;
  }
  const start = performance.now();
  run();
  return performance.now() - start;
}

function relativeL1(actual, expected) {
  let error = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i++) {
    error += Math.abs(actual[i] - expected[i]);
    size += Math.abs(expected[i]);
  }
  return error / size;
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];
const folder = mkdtempSync(join(tmpdir(), 'sage-backward-'));
const torch = startTorch();
const rows = [];
try {
  const {version, capability} = await torch.ask({});
  const say = options.json ? console.error : console.log;
  say(`${reason}; torch ${version}, ${capability}, ${threads} thread(s)`);
  for (const shape of options.shapes.split(',')) {
    const [heads, dim] = shape.split('x').map(Number);
    for (const tokens of options.tokens.split(',').map(Number)) {
      for (const causal of [false, true]) {
        const call = makeCall(heads, tokens, dim, causal);
        const {buffers} = call;
        for (const name of ['q', 'k', 'v', 'dO']) writeFileSync(join(folder, name), buffers[name]);
        await torch.ask({folder, heads, tokens, dim, causal});
        call.run();
        for (const name of ['dQ', 'dK', 'dV']) {
          const bytes = readFileSync(join(folder, name));
          const theirs = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
          const error = relativeL1(buffers[name], theirs);
          if (!(error < TOLERANCE)) throw new Error(`${name} is off by ${error}`);
        }
        const [ours, theirs] = [[], []];
        for (let round = -WARM_UP; round < rounds; round++) {
          const turns = [
            async () => ours.push(timed(call.run)),
            async () => theirs.push((await torch.ask({run: true})).ms),
          ];
          if (round % 2 !== 0) turns.reverse();
          for (const turn of turns) await turn();
          if (round < 0) ours.length = theirs.length = 0;
        }
        const flops = 10 * heads * tokens * tokens * dim;
        const [ms, minMs, peerMs, peerMinMs] = [
          ...[median(ours), Math.min(...ours)],
          ...[median(theirs), Math.min(...theirs)],
        ];
        const row = {heads, dim, tokens, causal, threads, ms, minMs, peerMs, peerMinMs};
        rows.push(row);
        const cell = (time) => `${time.toFixed(2)} ms (${(flops / time / 1e6).toFixed(0)} GFLOP/s)`;
        say(
          `H ${heads} D ${dim} N ${tokens} ${causal ? 'causal' : 'full  '}  native ${cell(ms)}  torch ${cell(peerMs)}  ` +
            `torch / native ${(peerMs / ms).toFixed(2)}, of least times ${(peerMinMs / minMs).toFixed(2)}`,
        );
      }
    }
  }
  if (options.json) console.log(JSON.stringify({schema: 1, isa: options.isa, capability, rows}));
} finally {
  torch.end();
  rmSync(folder, {recursive: true});
}
