// Decoding: one query (or a few) over 4,096 cached tokens, by SageKvCache in each precision, by a cache in the memory of
// a GPU where there is one (q and o are copied), by sageAttention from float32 k and v, and by ONNX Runtime's operators
// where bench/peers is installed. Reads the built package (`npm run build` first).
//   node bench/decode.mjs [--threads 1] [--queries 1] [--rounds 40]
//
// Cold: contenders take turns on caches in rotation whose sum is far above any processor cache, so each call reads from
// memory. Hot: the same cache again and again, from the sixth call of a turn on: a core that waited for a peer's thread
// takes about a millisecond to bring its caches and its clock back. Medians and least times in milliseconds; in brackets the best peer's time
// over that of the row. `kv_cache_test time` (csrc/test) compares with a plain read of memory.
// ONNX Runtime's GroupQueryAttention copies its past to its present in every call: that is its interface.
import {createRequire} from 'node:module';
import {parseArgs} from 'node:util';

const require = createRequire(import.meta.url);
const tf = require('@tensorflow/tfjs-core');
require('@tensorflow/tfjs-backend-cpu');
const {SageKvCache, configureSageAttention, sageAttention} = require('../dist/cjs/src/index.js');

const {values: options} = parseArgs({
  options: {
    threads: {type: 'string', default: '1'},
    queries: {type: 'string', default: '1'},
    rounds: {type: 'string', default: '40'},
  },
});
const threads = Number(options.threads);
const queries = Number(options.queries);
const rounds = Number(options.rounds);

const TOKENS = 4096;
const SHAPES = [
  {name: 'H 12 D 64', heads: 12, kvHeads: 12, dim: 64, sets: 10},
  {name: 'H 16 D 128', heads: 16, kvHeads: 16, dim: 128, sets: 5},
  {name: 'H 32:8 D 128', heads: 32, kvHeads: 8, dim: 128, sets: 8},
];
const PRECISIONS = ['int8', 'int8_int16', 'int16', 'exact'];
const ON_GPU = 'int8, on a GPU';
// Far outside of what a code of 8 bits with one scale for all would need: values are normal.
const PEER_SCALE = 4.5 / 127;

let noGpu = null;
configureSageAttention({threads});
await tf.setBackend('cpu');

function normal(count) {
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    values[i] = Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  }
  return values;
}

const least = (times) => Math.min(...times);
const median = (times) => [...times].sort((a, b) => a - b)[times.length >> 1];

// ---- ONNX models of one node, as protobuf (onnx.proto3): field numbers beside the calls.
const varint = (n) => (n < 128 ? [n] : [(n % 128) + 128, ...varint(Math.floor(n / 128))]);
const bytes = (field, data) => [...varint(field * 8 + 2), ...varint(data.length), ...data];
const int = (field, n) => [...varint(field * 8), ...varint(n)];
const text = (field, s) => bytes(field, [...Buffer.from(s)]);
const ELEMENT = {float32: 1, int8: 3, int32: 6};

function value(field, {name, type, dims}) {
  const shape = dims.flatMap((dim) => bytes(1, int(1, dim)));
  return bytes(field, [
    ...text(1, name),
    ...bytes(2, bytes(1, [...int(1, ELEMENT[type]), ...bytes(2, shape)])),
  ]);
}

function attribute(name, x) {
  if (typeof x === 'string') return bytes(5, [...text(1, name), ...text(4, x), ...int(20, 3)]);
  return bytes(5, [...text(1, name), ...int(3, x), ...int(20, 2)]);
}

function model({operator, domain, attributes, inputs, inputNames, outputs}) {
  const node = [
    ...inputNames.flatMap((name) => text(1, name)),
    ...outputs.flatMap(({name}) => text(2, name)),
    ...text(4, operator),
    ...Object.entries(attributes).flatMap(([name, x]) => attribute(name, x)),
    ...text(7, domain),
  ];
  const graph = [
    ...bytes(1, node),
    ...text(2, 'decode'),
    ...inputs.flatMap((input) => value(11, input)),
    ...outputs.flatMap((output) => value(12, output)),
  ];
  const set = (domain, version) => bytes(8, [...text(1, domain), ...int(2, version)]);
  return Uint8Array.from([
    ...int(1, 10),
    ...bytes(7, graph),
    ...set('', 23),
    ...set('com.microsoft', 1),
  ]);
}

async function peerContenders(shape, q, sets) {
  let ort;
  try {
    ort = createRequire(new URL('./peers/package.json', import.meta.url))('onnxruntime-node');
  } catch {
    console.log('onnxruntime-node is not installed in bench/peers: no peers');
    return [];
  }
  const {heads, kvHeads, dim} = shape;
  const session = (definition) =>
    ort.InferenceSession.create(model(definition), {
      executionProviders: ['cpu'],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      logSeverityLevel: 3,
    });
  const found = [];
  const add = async (name, definition, feedsOf) => {
    try {
      const run = await session(definition);
      const feeds = sets.map(feedsOf);
      await run.run(feeds[0]);
      found.push({name, run: (n) => run.run(feeds[n])});
    } catch (error) {
      console.log(`${name} does not run here: ${String(error.message).split('\n')[0]}`);
    }
  };
  const float = (name, dims) => ({name, type: 'float32', dims});
  const query = new ort.Tensor('float32', q, [1, heads, queries, dim]);
  await add(
    'onnxruntime Attention',
    {
      operator: 'Attention',
      domain: '',
      attributes: {},
      inputNames: ['q', 'k', 'v'],
      inputs: [
        float('q', [1, heads, queries, dim]),
        float('k', [1, kvHeads, TOKENS, dim]),
        float('v', [1, kvHeads, TOKENS, dim]),
      ],
      outputs: [float('o', [1, heads, queries, dim])],
    },
    ({k, v}) => ({
      q: query,
      k: new ort.Tensor('float32', k, [1, kvHeads, TOKENS, dim]),
      v: new ort.Tensor('float32', v, [1, kvHeads, TOKENS, dim]),
    }),
  );
  if (queries !== 1) return found;
  const past = TOKENS - 1;
  const one = (h) => new ort.Tensor('float32', normal(h * dim), [1, 1, h * dim]);
  for (const type of ['float32', 'int8']) {
    const quantised = type === 'int8';
    const pastDims = [1, kvHeads, past, dim];
    const nowDims = [1, kvHeads, TOKENS, dim];
    const codes = (x) => {
      const part = x.subarray(0, kvHeads * past * dim);
      return quantised
        ? Int8Array.from(part, (y) => Math.max(-128, Math.min(127, Math.round(y / PEER_SCALE))))
        : part;
    };
    await add(
      `onnxruntime GroupQueryAttention ${type}`,
      {
        operator: 'GroupQueryAttention',
        domain: 'com.microsoft',
        attributes: {
          num_heads: heads,
          kv_num_heads: kvHeads,
          ...(quantised
            ? {kv_cache_bit_width: 8, k_quant_type: 'PER_TENSOR', v_quant_type: 'PER_TENSOR'}
            : {}),
        },
        inputNames: [
          ...['q', 'k', 'v', 'past_k', 'past_v', 'last', 'total'],
          ...(quantised ? ['', '', '', '', '', 'k_scale', 'v_scale'] : []),
        ],
        inputs: [
          float('q', [1, 1, heads * dim]),
          float('k', [1, 1, kvHeads * dim]),
          float('v', [1, 1, kvHeads * dim]),
          {name: 'past_k', type, dims: pastDims},
          {name: 'past_v', type, dims: pastDims},
          {name: 'last', type: 'int32', dims: [1]},
          {name: 'total', type: 'int32', dims: [1]},
          ...(quantised ? [float('k_scale', [1]), float('v_scale', [1])] : []),
        ],
        outputs: [
          float('o', [1, 1, heads * dim]),
          {name: 'now_k', type, dims: nowDims},
          {name: 'now_v', type, dims: nowDims},
        ],
      },
      ({k, v}) => ({
        q: one(heads),
        k: one(kvHeads),
        v: one(kvHeads),
        past_k: new ort.Tensor(type, codes(k), pastDims),
        past_v: new ort.Tensor(type, codes(v), pastDims),
        last: new ort.Tensor('int32', Int32Array.of(past), [1]),
        total: new ort.Tensor('int32', Int32Array.of(TOKENS), [1]),
        ...(quantised
          ? {
              k_scale: new ort.Tensor('float32', Float32Array.of(PEER_SCALE), [1]),
              v_scale: new ort.Tensor('float32', Float32Array.of(PEER_SCALE), [1]),
            }
          : {}),
      }),
    );
  }
  return found;
}

async function timeOne(contender, n) {
  const start = process.hrtime.bigint();
  const result = await contender.run(n);
  const ms = Number(process.hrtime.bigint() - start) / 1e6;
  contender.free?.(result);
  return ms;
}

for (const shape of SHAPES) {
  const {name, heads, kvHeads, dim, sets: count} = shape;
  const q = normal(heads * queries * dim);
  const query = tf.tensor4d(q, [1, heads, queries, dim]);
  const sets = Array.from({length: count}, () => {
    const [k, v] = [0, 1].map(() => normal(kvHeads * TOKENS * dim));
    const [kt, vt] = [k, v].map((x) => tf.tensor4d(x, [1, kvHeads, TOKENS, dim]));
    const sizes = {batch: 1, heads, kvHeads, headDim: dim};
    const caches = Object.fromEntries(
      PRECISIONS.map((precision) => [
        precision,
        new SageKvCache({...sizes, precision}).append(kt, vt),
      ]),
    );
    const before = configureSageAttention({engine: 'cuda'});
    const onGpu = new SageKvCache({...sizes, precision: 'int8'});
    configureSageAttention(before);
    if (onGpu.engine === 'cuda') caches[ON_GPU] = onGpu.append(kt, vt);
    else noGpu = onGpu.engineReason;
    return {k, v, kt, vt, caches};
  });
  const options = {isCausal: 'bottom_right', precision: 'exact'};
  const contenders = [
    ...Object.keys(sets[0].caches).map((kind) => ({
      name: `SageKvCache ${kind}`,
      run: (n) => sets[n].caches[kind].attend(query),
    })),
    {
      name: 'sageAttention exact',
      run: (n) => sageAttention(query, sets[n].kt, sets[n].vt, options),
    },
  ].map((contender) => ({...contender, free: (o) => o.dispose()}));
  const peers = await peerContenders(shape, q, sets);
  const all = [...contenders, ...peers].map((c) => ({...c, cold: [], hot: []}));
  for (let round = -3; round < rounds; round++) {
    const order = round % 2 === 0 ? all : [...all].reverse();
    for (const contender of order) {
      const ms = await timeOne(contender, (round + 3) % count);
      if (round >= 0) contender.cold.push(ms);
    }
  }
  for (let round = -2; round < Math.ceil(rounds / 4); round++) {
    for (const contender of all) {
      for (let n = 0; n < 10; n++) {
        const ms = await timeOne(contender, 0);
        if (round >= 0 && n >= 5) contender.hot.push(ms);
      }
    }
  }
  const peerRows = all.slice(contenders.length);
  console.log(`${name}, ${TOKENS} tokens, ${queries} queries, ${threads} thread(s)`);
  for (const contender of all) {
    const cells = ['cold', 'hot'].map((temperature) => {
      const parts = [median, least].map((pick) => {
        const ms = pick(contender[temperature]);
        const ratio = least(peerRows.map((peer) => pick(peer[temperature]))) / ms;
        return Number.isFinite(ratio) ? `${ms.toFixed(3)} (${ratio.toFixed(1)}x)` : ms.toFixed(3);
      });
      return `${temperature} ${parts.join(', least ')}`;
    });
    console.log(`  ${contender.name.padEnd(40)} ${cells.join('   ')}`);
  }
  for (const {kt, vt, caches} of sets) {
    tf.dispose([kt, vt]);
    for (const cache of Object.values(caches)) cache.dispose();
  }
  query.dispose();
}
if (noGpu !== null) console.log(`No row of a GPU: ${noGpu}`);
