// What the assembler made of the int8 kernels: registers, spills, and instructions per score of the step that
// nearly every key takes. Needs nvcc and cuobjdump, no device.
//
//   node scripts/sass_int8.mjs [--arch 89] [--cuobjdump path] [--source attend_half] [--json]
//
// The step is the shortest way, in instructions, from a block of integer products through products of P·V and back to
// it: masks, edges and moved offsets lie off it. Exit code 1 when a step of
// head_dim 64, or of halves with sums in float32, meets spilled registers more than eight times (64 keys), or when an
// instance that must have e4m3 or int4 products has none; 77 where nvcc, cuobjdump or its nvdisasm is missing, with one
// line that says so. --source: only the kernels of that file.
import {spawnSync} from 'node:child_process';
import {mkdtempSync, rmSync} from 'node:fs';
import {tmpdir} from 'node:os';
import {dirname, join} from 'node:path';
import {fileURLToPath} from 'node:url';
import {parseArgs} from 'node:util';
import {findDisassembler, findTool} from './find_disassembler.mjs';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const {values: options} = parseArgs({
  options: {
    arch: {type: 'string', default: '89'},
    cuobjdump: {type: 'string'},
    source: {type: 'string'},
    json: {type: 'boolean', default: false},
  },
});

const FORMS = [
  'half',
  'half by 64',
  'half sums',
  'e4m3 in half',
  'e4m3',
  'e4m3 two-level',
  'e4m3 half sums',
];
const OF_HALVES = ['attend_half', 'attend_half_sums', 'attend_e4m3_in_half'];
const OF_BYTES = ['e4m3/attend_two_level', 'e4m3/attend_sums'];

function run(command, args) {
  const child = spawnSync(command, args, {cwd: root, encoding: 'utf8', maxBuffer: 1 << 30});
  if (child.error !== undefined || child.status !== 0) {
    console.error(`${command} failed: ${child.error?.message ?? child.stderr}`);
    process.exit(2);
  }
  return child.stdout + child.stderr;
}

const nvcc = findTool('nvcc');
const {cuobjdump, missing} = findDisassembler(options.cuobjdump);
if (!nvcc || !cuobjdump) {
  console.log(`skipped: no ${nvcc ? missing : 'nvcc'}`);
  process.exit(77);
}

/** head_dim, int4, form, warps and slots of copies of a mangled kernel name; null for other functions. */
function instanceOf(name) {
  const match = /AttendKernel.*?Li(\d+)ELb([01])E.*?ValuesE(\d)ELi(\d)ELi(\d)E/.exec(name);
  if (match === null) return null;
  const [, dim, int4, form, warps, slots] = match;
  return {
    dim: Number(dim),
    int4: int4 === '1',
    form: FORMS[Number(form)],
    warps: Number(warps),
    slots: Number(slots),
  };
}

/** Lines "address instruction" of each attention kernel. */
function kernelsOf(sass) {
  const kernels = new Map();
  let lines = null;
  for (const line of sass.split('\n')) {
    const name = /Function : (\S+)/.exec(line);
    if (name !== null) {
      lines = instanceOf(name[1]) === null ? null : [];
      if (lines !== null) kernels.set(name[1], lines);
      continue;
    }
    const code = /^\s+\/\*([0-9a-f]{4,5})\*\/\s+(.*?);/.exec(line);
    if (lines !== null && code !== null)
      lines.push({at: parseInt(code[1], 16), text: code[2].trim()});
  }
  return kernels;
}

const opcode = (text) => (text.startsWith('@') ? text.split(/\s+/)[1] : text.split(/\s+/)[0]);
const jumpOf = (text) => /\bBRA(?:\.\w+)*\s.*?(0x[0-9a-f]+)$/.exec(text)?.[1];

/** Basic blocks with their successors. */
function blocksOf(lines) {
  const starts = new Set([lines[0].at]);
  for (const {text} of lines) {
    const jump = /\b(?:BRA|BSSY)\b.*?(0x[0-9a-f]+)$/.exec(text);
    if (jump !== null) starts.add(parseInt(jump[1], 16));
  }
  const blocks = [];
  let open = null;
  for (const line of lines) {
    if (open === null || starts.has(line.at)) {
      open = {at: line.at, lines: [], next: []};
      blocks.push(open);
    }
    open.lines.push(line);
    if (/\b(BRA|EXIT|RET)\b/.test(line.text)) open = null;
  }
  blocks.forEach((block, n) => {
    const last = block.lines.at(-1).text;
    const jump = jumpOf(last);
    if (jump !== undefined) block.next.push(parseInt(jump, 16));
    const falls =
      jump === undefined
        ? !/\b(EXIT|RET)\b/.test(last) || last.startsWith('@')
        : last.startsWith('@') || /BRA \w*!?U?P\d/.test(last);
    if (falls && n + 1 < blocks.length) block.next.push(blocks[n + 1].at);
  });
  return new Map(blocks.map((block) => [block.at, block]));
}

/** Blocks of the shortest way from one block to another, the ends included; null without one. */
function shortest(blocks, from, to) {
  const best = new Map(from.next.map((at) => [at, {cost: 0, before: null}]));
  const done = new Set();
  for (;;) {
    let at = null;
    for (const [candidate, {cost}] of best) {
      if (!done.has(candidate) && (at === null || cost < best.get(at).cost)) at = candidate;
    }
    if (at === null) return null;
    done.add(at);
    const block = blocks.get(at);
    if (block === undefined) continue;
    if (at === to.at) {
      const way = [];
      for (let step = at; step !== null; step = best.get(step).before)
        way.unshift(blocks.get(step));
      return way;
    }
    const cost = best.get(at).cost + block.lines.length;
    for (const next of block.next) {
      if (!best.has(next) || best.get(next).cost > cost) best.set(next, {cost, before: at});
    }
  }
}

const countOf = (lines, pattern) => lines.filter(({text}) => pattern.test(opcode(text))).length;

/** Of the shortest ways from products of scores back to themselves the one with the fewest instructions per score. */
function stepOf(lines) {
  const blocks = blocksOf(lines);
  let best = null;
  for (const block of blocks.values()) {
    if (countOf(block.lines, /^IMMA/) === 0) continue;
    const step = shortest(blocks, block, block)?.flatMap((each) => each.lines) ?? [];
    // Every exponential is one score of a thread.
    const exponentials = countOf(step, /^MUFU/);
    if (exponentials === 0 || countOf(step, /^[HQ]MMA/) === 0) continue;
    const cost = step.length / exponentials;
    if (best === null || cost < best.cost) best = {cost, step, exponentials};
  }
  return best;
}

function measure(lines) {
  const found = stepOf(lines);
  if (found === null) return null;
  const {step, exponentials} = found;
  const per = (n) => n / exponentials;
  const shared = (width) => countOf(step, new RegExp(`^LDS\\.${width}`));
  return {
    instructions: per(step.length),
    integer: per(countOf(step, /^IMMA/)),
    products: per(countOf(step, /^[HQ]MMA/)),
    moves: per(countOf(step, /^(MOV|IMAD\.MOV)/)),
    // Accesses to spilled registers.
    local: countOf(step, /^(LDL|STL)/),
    // 32 lanes of a warp read for the 32 scores of its threads' one each.
    sharedBytes: per(16 * shared(128) + 8 * shared(64)),
    e4m3: lines.some(({text}) => /^QMMA.*E4M3/.test(opcode(text)) || /QMMA.*E4M3/.test(text)),
    int4Products: lines.some(({text}) => /IMMA\S*S4/.test(text)),
  };
}

const folder = mkdtempSync(join(tmpdir(), 'sass-int8-'));
const rows = [];
try {
  const all = Number(options.arch) >= 89 ? [...OF_HALVES, ...OF_BYTES] : OF_HALVES;
  const sources = all.filter((source) => (options.source ?? source) === source);
  for (const source of sources) {
    const cubin = join(folder, 'kernels.cubin');
    const log = run(nvcc, [
      '-O3',
      '-std=c++17',
      '--expt-relaxed-constexpr',
      '-DSAGE_WITH_E4M3',
      '-Xptxas',
      '-v',
      '-cubin',
      `-gencode=arch=compute_${options.arch},code=sm_${options.arch}`,
      '-Icsrc',
      '-Icsrc/include',
      '-o',
      cubin,
      `csrc/cuda/int8/${source}.cu`,
    ]);
    for (const [name, lines] of kernelsOf(run(cuobjdump, ['-sass', cubin]))) {
      const said = log.slice(log.indexOf(`'${name}'`));
      const spilled = Number(/(\d+) bytes spill stores/.exec(said)?.[1]);
      const registers = Number(/Used (\d+) registers/.exec(said)?.[1]);
      rows.push({...instanceOf(name), registers, spilled, ...measure(lines)});
    }
  }
} finally {
  rmSync(folder, {recursive: true, force: true});
}

if (options.json) {
  console.log(JSON.stringify({schema: 1, arch: options.arch, rows}));
} else {
  console.log(
    `sm_${options.arch}: per score: instructions, IMMA, HMMA or QMMA, moves, bytes of shared memory`,
  );
  for (const row of rows) {
    const numbers = [row.instructions, row.integer, row.products, row.moves, row.sharedBytes];
    console.log(
      `${row.form.padEnd(15)} hd${String(row.dim).padEnd(4)}${row.int4 ? 'int4' : 'int8'} ${row.warps} warps ${row.slots} slots ` +
        `${row.registers} registers ${String(row.spilled).padStart(4)} spilled  ` +
        numbers.map((n) => (n === undefined ? '-' : n.toFixed(2)).padStart(6)).join(''),
    );
  }
}
const wrong = rows.filter(
  ({dim, form, local, e4m3, int4, int4Products}) =>
    ((dim === 64 || form === 'half') && !(local <= 8)) ||
    (options.arch === '89' && form.startsWith('e4m3') && form !== 'e4m3 in half' && !e4m3) ||
    (Number(options.arch) < 90 && int4 && !int4Products),
);
for (const row of wrong) console.error(`not as it should be: ${JSON.stringify(row)}`);
process.exitCode = wrong.length === 0 && rows.length > 0 ? 0 : 1;
