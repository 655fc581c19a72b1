// Counts what the main loop of the FP4 attention kernels issues per score, from the machine code for sm_120f, and
// models the speed that follows (docs/kernels_fp4.md). Needs nvcc 12.8 or later and cuobjdump; no device.
//
//   node scripts/sass_fp4.mjs                     compiles, prints the table; exit code 1 where a limit is exceeded
//   node scripts/sass_fp4.mjs --json              the same as one JSON object
//   node scripts/sass_fp4.mjs --format fp4        only the kernels with v in that format; fp8 is the other
//   node scripts/sass_fp4.mjs --cuobjdump PATH    where it is, if not on the path or beside nvcc
//   node scripts/sass_fp4.mjs --listing FOLDER    also leaves the machine code there
//
// Exit code 77 where nvcc, cuobjdump or its nvdisasm is missing, with one line that says so.
import {spawnSync} from 'node:child_process';
import {mkdirSync, mkdtempSync, rmSync, writeFileSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {parseArgs} from 'node:util';
import {findDisassembler, findTool} from './find_disassembler.mjs';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const {values} = parseArgs({
  options: {
    json: {type: 'boolean', default: false},
    cuobjdump: {type: 'string'},
    format: {type: 'string'},
    listing: {type: 'string'},
  },
});

// What each kernel may issue per score: `limits` are what it has reached, and fail; `aims` are told.
const KERNELS = [
  {
    dim: 128,
    format: 'fp4',
    limits: {issue: 7.8, mufu: 1.15, omma: 0.125, bytes: 4, loopSpills: 0},
    aims: {issue: 6.8, loopSpills: 0},
  },
  {
    dim: 64,
    format: 'fp4',
    limits: {issue: 7.0, mufu: 1.15, omma: 0.0625, bytes: 4, loopSpills: 0},
    aims: {issue: 7.0, loopSpills: 0},
  },
  {dim: 128, format: 'fp8', limits: {issue: 8.5, mufu: 1.05, loopSpills: 0}, aims: {}},
  {dim: 64, format: 'fp8', limits: {issue: 7.0, mufu: 1.05, loopSpills: 0}, aims: {}},
];
// Warps of a block that compute, by head_dim; a scheduler serves a quarter of them.
const WARPS = {64: 12, 128: 8};
// A GeForce RTX 5090: multiprocessors, clock, and what one multiprocessor does per clock.
const DEVICE = {
  multiprocessors: 170,
  hertz: 2.407e9,
  fp4: 2048, // multiply-adds of OMMA; e4m3 half of it, fp16 and tf32 with float32 sums below
  fp8: 1024,
  half: 256,
  tf32: 128,
  mufu: 16,
  issue: 128, // four schedulers, 32 threads
  sharedBytes: 128,
};
// Scores per thread and pass of the innermost loop that holds the products: a tile, 32 rows x 128 keys of a warp.
const SCORES = (32 * 128) / 32;

function missing(what) {
  console.log(`skipped: ${what}`);
  process.exit(77);
}

function run(command, args) {
  const child = spawnSync(command, args, {encoding: 'utf8', maxBuffer: 1 << 30});
  if (child.status !== 0) {
    console.error(`${command} ${args.join(' ')}\n${child.stdout ?? ''}${child.stderr ?? ''}`);
    process.exit(2);
  }
  return child.stdout + child.stderr;
}

/** Functions of a listing: name to instructions {at, text, predicate, op, target}. */
function parse(listing) {
  const functions = new Map();
  let body = null;
  for (const line of listing.split('\n')) {
    const name = /Function : (\S+)/.exec(line);
    if (name) {
      body = [];
      functions.set(name[1], body);
      continue;
    }
    const match = /^\s*\/\*([0-9a-f]{4,})\*\/\s+(.*?);/.exec(line);
    if (!match || !body) continue;
    const parts = /^(@!?U?P\w+\s+)?([A-Z][\w.]*)/.exec(match[2]);
    if (!parts) continue;
    const target = /\bBRA\b.*?(0x[0-9a-f]+)/.exec(match[2]);
    body.push({
      at: parseInt(match[1], 16),
      text: match[2],
      predicate: (parts[1] ?? '').trim(),
      op: parts[2],
      target: target ? parseInt(target[1], 16) : null,
    });
  }
  return functions;
}

const isProduct = (i) => /^(OMMA|QMMA)/.test(i.op);

/** Basic blocks of instructions [from, to): {first, end, next: addresses}. */
function blocksOf(code, from, to) {
  const starts = new Set([from]);
  code.forEach((instruction, n) => {
    if (n < from || n >= to) return;
    if (instruction.target !== null) {
      const target = code.findIndex((x) => x.at === instruction.target);
      if (target >= from && target < to) starts.add(target);
      if (n + 1 < to) starts.add(n + 1);
    } else if (/^(EXIT|BRX|RET|CALL)/.test(instruction.op) && n + 1 < to) {
      starts.add(n + 1);
    }
  });
  const order = [...starts].sort((a, b) => a - b);
  return order.map((first, k) => ({first, end: order[k + 1] ?? to}));
}

/**
 * The instructions of the usual pass: of the innermost loop with enough products, the shortest path from its head to
 * its back edge that holds `products` of them. (Hiding keys and moving offsets are detours.)
 */
function mainLoop(code, products) {
  const indexOf = new Map(code.map((instruction, n) => [instruction.at, n]));
  let loop = null;
  code.forEach((instruction, n) => {
    if (instruction.target === null || instruction.target > instruction.at) return;
    const head = indexOf.get(instruction.target);
    if (code.slice(head, n + 1).filter(isProduct).length < products) return;
    if (!loop || n - head < loop.end - loop.head) loop = {head, end: n + 1};
  });
  if (!loop) return [];
  const blocks = blocksOf(code, loop.head, loop.end);
  const byFirst = new Map(blocks.map((block, k) => [block.first, k]));
  // Per block: number of products on the way to it, to the shortest such way.
  const ways = blocks.map(() => new Map());
  const offer = (to, made, path) => {
    const known = to.get(made);
    if (!known || path.length < known.length) to.set(made, path);
  };
  const closed = new Map();
  offer(ways[0], 0, []);
  blocks.forEach((block, k) => {
    const body = code.slice(block.first, block.end);
    const last = body.at(-1);
    const next = [];
    if (last.target !== null) next.push(indexOf.get(last.target));
    const conditional = last.predicate !== '' || /BRA\S*\s+!?U?P\d/.test(last.text);
    if (conditional || !/^(EXIT|BRA|RET)/.test(last.op)) next.push(block.end);
    for (const [before, path] of ways[k]) {
      const made = before + body.filter(isProduct).length;
      if (made > products) continue;
      for (const at of next) {
        if (at === loop.head) offer(closed, made, [...path, ...body]);
        else if (byFirst.has(at) && byFirst.get(at) > k)
          offer(ways[byFirst.get(at)], made, [...path, ...body]);
      }
    }
  });
  return closed.get(products) ?? [];
}

function bytesOf(op) {
  const bits = /\.(\d+)$/.exec(op);
  return bits ? Number(bits[1]) / 8 : 4;
}

const tally = (path, test) => path.filter((i) => test.test(i.op)).length;

/** Products of one pass over a tile of 128 keys: scores and outputs of two row tiles. */
const productsOf = (dim, format) =>
  2 * 16 * (dim / 64) + 2 * 2 * (dim / 8) * (format === 'fp8' ? 2 : 1);

function report(dim, format, code, resources) {
  const path = mainLoop(code, productsOf(dim, format));
  const per = (count) => count / SCORES;
  const omma = tally(path, /^OMMA/),
    qmma = tally(path, /^QMMA/);
  const loads = path.filter((i) => /^LDS/.test(i.op));
  // Operand fragments are loads of 16 bytes by every thread; the scores of the means are 16 bytes of which
  // a warp reads 64 different ones.
  const mix = {};
  for (const i of path) {
    const name = i.op.split('.')[0];
    mix[name] = (mix[name] ?? 0) + 1;
  }
  const wide = loads.filter((i) => bytesOf(i.op) === 16).length;
  const means = 16; // key tiles
  // Four words of scales at once: of k, and of v in fp4.
  const vScales = dim === 128 ? (format === 'fp4' ? 4 : 2) : 0;
  const fragments = wide - means - vScales;
  const operandBytes = (fragments * 512) / (32 * SCORES);
  const otherBytes =
    (means * 64 +
      loads.filter((i) => bytesOf(i.op) < 16).reduce((sum, i) => sum + bytesOf(i.op) * 32, 0) +
      vScales * 512) /
    (32 * SCORES);
  const products = {
    omma: (omma * 16 * 8 * 64) / DEVICE.fp4 / (32 * SCORES),
    qmma: (qmma * 16 * 8 * 32) / DEVICE.fp8 / (32 * SCORES),
    // Per block of rows and 128 keys: 8 tiles of 16 keys, head_dim / 16 steps, for 8 means at a time.
    means:
      (8 * (dim / 16) * 2048 * Math.ceil(WARPS[dim] / 8)) / DEVICE.half / (32 * WARPS[dim] * 128),
    // Per warp and 512 keys: 2 row tiles, head_dim / 8 channel tiles of m16n8k4.
    vMeans: (2 * (dim / 8) * 512) / DEVICE.tf32 / (32 * 512),
  };
  return {
    dim,
    format,
    ...resources,
    instructions: path.length,
    issue: per(path.length),
    mufu: per(mix.MUFU ?? 0),
    omma: products.omma,
    qmma: products.qmma,
    bytes: operandBytes,
    otherBytes,
    tensor: products.omma + products.qmma + products.means + products.vMeans,
    // Slots of products, and the one after each that the assembler fills with nothing or a constant.
    beside: per(omma + qmma + (mix.NOP ?? 0) + (mix.UMOV ?? 0)),
    mix,
  };
}

/** Instructions per clock that one warp issues outside its products: what fits the Hopper kernel, see HOPPER. */
const ALONE = 0.25;
/** The measured kernel that the model's form is checked with: int8_fp8 on an H200, docs/kernels_hopper.md at 16K. */
const HOPPER = [
  {
    dim: 128,
    issue: 7.53,
    beside: 0,
    mufu: 66 / 64,
    tensor: 0.0645,
    shared: 0,
    warps: 2,
    measured: 855,
  },
  {
    dim: 64,
    issue: 7.34,
    beside: 0,
    mufu: 66 / 64,
    tensor: 0.0322,
    shared: 0,
    warps: 3,
    measured: 586,
  },
];
const HOPPER_DEVICE = {multiprocessors: 132, hertz: 1.755e9};

/**
 * Clocks per score of a multiprocessor whose schedulers serve `warps` warps each: the busiest pipe, or what one warp
 * needs from end to end, its products and then the rest, shared among the warps.
 */
function model({dim, issue, beside, mufu, tensor, shared, warps}, device) {
  const rest = Math.max((issue - beside) / DEVICE.issue / ALONE, mufu / DEVICE.mufu);
  const pipes = [tensor, mufu / DEVICE.mufu, issue / DEVICE.issue, shared / DEVICE.sharedBytes];
  const clocks = Math.max(...pipes, (tensor + rest) / warps);
  return {clocks, tops: (4 * dim * device.multiprocessors * device.hertz) / clocks / 1e12};
}

const nvcc = findTool('nvcc');
if (!nvcc) missing('no nvcc');
const version = /release (\d+)\.(\d+)/.exec(run(nvcc, ['--version']));
if (Number(version[1]) * 100 + Number(version[2]) < 1208) missing('nvcc is older than 12.8');
const {cuobjdump, missing: absent} = findDisassembler(values.cuobjdump);
if (!cuobjdump) missing(`no ${absent}`);

const folder = values.listing ?? mkdtempSync(join(tmpdir(), 'sass-'));
mkdirSync(folder, {recursive: true});
const rows = [];
for (const {dim, format, limits, aims} of KERNELS) {
  if ((values.format ?? format) !== format) continue;
  const cubin = join(folder, `attend_${dim}_${format}.cubin`);
  const log = run(nvcc, [
    ...['-O3', '-std=c++17', '-fmad=false', '--expt-relaxed-constexpr', '-Xptxas', '-v', '-cubin'],
    ...['-gencode=arch=compute_120f,code=sm_120f', `-I${root}/csrc`, `-I${root}/csrc/include`],
    ...['-o', cubin, join(root, 'csrc', 'cuda', 'sm120', `attend_${dim}_${format}.cu`)],
  ]);
  const listing = run(cuobjdump, ['-sass', cubin]);
  if (values.listing) writeFileSync(join(folder, `attend_${dim}_${format}.sass`), listing);
  for (const [name, code] of parse(listing)) {
    const match = /AttendKernelILi(\d+)ELb([01])ELb([01])/.exec(name);
    if (!match || match[3] === '1') continue; // with a mask, every step is masked: not the main loop
    const lines = log.slice(log.indexOf(`'${name}'`));
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(lines);
    const row = report(dim, format, code, {
      registers: WARPS[dim] === 8 ? 240 : 160,
      spilled: Number(spills[1]) + Number(spills[2]),
      // Spills of the rare detours do not count against the loop.
      loopSpills: 0,
    });
    const path = mainLoop(code, productsOf(dim, format));
    row.loopSpills = tally(path, /^(LDL|STL)/);
    row.model = model({...row, shared: row.bytes + row.otherBytes, warps: WARPS[dim] / 4}, DEVICE);
    const above = (bounds) =>
      Object.entries(bounds)
        .filter(([key, bound]) => row[key] > bound + 1e-9)
        .map(([key, bound]) => `${key} ${Number(row[key].toFixed(3))} > ${bound}`);
    row.failures = above(limits);
    row.missed = above(aims);
    if (row.omma === 0) row.failures.push('no OMMA');
    rows.push(row);
  }
}
if (!values.listing) rmSync(folder, {recursive: true});

if (values.json) {
  const check = HOPPER.map((row) => ({...row, model: model(row, HOPPER_DEVICE)}));
  console.log(JSON.stringify({schema: 1, rows, check}));
} else {
  console.log(
    'kernel      issue   MUFU  tensor clk (OMMA)   bytes (+other)  spilled: all, loop   model: clk, TOPS',
  );
  for (const row of rows) {
    console.log(
      `${`hd${row.dim} ${row.format}`.padEnd(10)} ${row.issue.toFixed(2).padStart(6)} ${row.mufu.toFixed(3)} ` +
        `${row.tensor.toFixed(4).padStart(9)} (${row.omma.toFixed(4)}) ${row.bytes.toFixed(2).padStart(9)} (+${row.otherBytes.toFixed(2)}) ` +
        `${String(row.spilled).padStart(9)} B, ${row.loopSpills}  ${row.model.clocks.toFixed(4).padStart(14)} ${row.model.tops.toFixed(0)}`,
    );
    const mix = Object.entries(row.mix).sort((a, b) => b[1] - a[1]);
    console.log(`  ${mix.map(([op, count]) => `${op} ${(count / SCORES).toFixed(2)}`).join('  ')}`);
    if (row.missed.length > 0) console.log(`  above the aim: ${row.missed.join('; ')}`);
    if (row.failures.length > 0) console.log(`  exceeds: ${row.failures.join('; ')}`);
  }
  for (const row of HOPPER) {
    const {tops} = model(row, HOPPER_DEVICE);
    console.log(
      `model of the Hopper kernel, hd${row.dim}: ${tops.toFixed(0)} TOPS, measured ${row.measured}`,
    );
  }
}
process.exit(rows.every((row) => row.failures.length === 0) ? 0 : 1);
