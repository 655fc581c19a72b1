// Keeps a run of `bench --peers` in bench/results and writes docs/benchmarks_cpu.md and its plots from all that are kept:
//
//   node bench/write_tables.mjs build/bench.json
//
// One result is kept for each instruction set of the native engine.
import {mkdirSync, readdirSync, readFileSync, writeFileSync} from 'node:fs';
import {createRequire} from 'node:module';
import {dirname, join} from 'node:path';
import {fileURLToPath, pathToFileURL} from 'node:url';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const results = join(root, 'bench', 'results');
const docs = join(root, 'docs');
const peers = createRequire(join(root, 'bench', 'peers', 'package.json'));

const THREE_DIGITS = (value) => (value < 100 ? value.toPrecision(3) : value.toFixed(0));

/** `h12_kv2_d128_n1024_full` in its parts. */
function partsOf(name) {
  const [, shape, tokens, kind] = /^(.+)_n(\d+)_(full|causal)$/.exec(name);
  return {shape, tokens: Number(tokens), kind};
}

const columnOf = ({engine, precision}) =>
  engine === 'peer:torch' ? `torch ${precision}` : engine.replace(/^peer:/, '');

/** Rows of one case and number of threads become one line: time of the best peer, then how often as fast each recipe is. */
function table(rows) {
  const recipes = [...new Set(rows.filter(isOurs).map(({precision}) => precision))];
  const lines = [
    ['case', 'threads', 'best peer', 'ms', ...recipes.map((name) => `\`${name}\``)],
    ['---', '--:', '---', '--:', ...recipes.map(() => '--:')],
  ];
  for (const group of groupBy(rows, ({case: name, threads}) => `${name} ${threads}`)) {
    const [{case: name, threads}] = group;
    const best = group.filter((row) => !isOurs(row)).sort((a, b) => a.ms - b.ms)[0];
    const ratios = recipes.map((recipe) => {
      const row = group.find((one) => isOurs(one) && one.precision === recipe);
      return row === undefined ? '-' : (row.ratioToBestPeer?.toFixed(2) ?? '-');
    });
    lines.push([
      name,
      threads,
      best === undefined ? '-' : columnOf(best),
      best === undefined ? '-' : THREE_DIGITS(best.ms),
      ...ratios,
    ]);
  }
  return lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

/** From this length on a row counts for the summary: what is shorter is told case by case. */
const LONG = 512;

/** Per recipe, by mask and threads, of all cases from LONG tokens on: the least ratio to the best peer, and the median. */
function summary(rows) {
  const ours = rows.filter(isOurs).filter(({case: name}) => partsOf(name).tokens >= LONG);
  const columnKey = ({case: name, threads}) => `${partsOf(name).kind}, ${threads}`;
  const columns = groupBy(ours, columnKey).map((group) => {
    const [{case: name, threads}] = group;
    const title = `${partsOf(name).kind}, ${threads} ${threads === 1 ? 'thread' : 'threads'}`;
    return {title, key: columnKey(group[0])};
  });
  const lines = [
    ['recipe', ...columns.map(({title}) => title)],
    ['---', ...columns.map(() => '--:')],
  ];
  for (const group of groupBy(ours, ({precision}) => precision)) {
    const cells = columns.map(({key}) => {
      const ratios = group
        .filter((row) => columnKey(row) === key)
        .map(({ratioToBestPeer}) => ratioToBestPeer)
        .sort((a, b) => a - b);
      const middle = (ratios.length - 1) / 2;
      const median = (ratios[Math.floor(middle)] + ratios[Math.ceil(middle)]) / 2;
      return `${ratios[0].toFixed(2)} / ${median.toFixed(2)}`;
    });
    lines.push([`\`${group[0].precision}\``, ...cells]);
  }
  return lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n');
}

const isOurs = ({engine}) => !engine.startsWith('peer:');

function groupBy(rows, keyOf) {
  const groups = new Map();
  for (const row of rows) groups.set(keyOf(row), [...(groups.get(keyOf(row)) ?? []), row]);
  return [...groups.values()];
}

/** Vega-Lite: how often as fast as the best peer, by length, for each shape, kind and number of threads. */
function plotOf({machine, rows}) {
  const values = rows.filter(isOurs).map(({case: name, threads, precision, ratioToBestPeer}) => {
    const {shape, tokens, kind} = partsOf(name);
    const where = `${kind}, ${threads} ${threads === 1 ? 'thread' : 'threads'}`;
    return {shape, tokens, where, recipe: precision, ratio: ratioToBestPeer};
  });
  const recipe = {field: 'recipe', type: 'nominal', sort: null};
  return {
    title: {
      text: `Times as fast as the best peer: ${machine.cpu.trim()}, ${machine.isa}`,
      anchor: 'start',
    },
    background: 'white',
    data: {values},
    facet: {
      row: {field: 'shape', title: null, sort: null},
      column: {field: 'where', title: null, sort: null},
    },
    spec: {
      width: 190,
      height: 150,
      layer: [
        {mark: {type: 'rule', strokeDash: [4, 3], color: '#888'}, encoding: {y: {datum: 1}}},
        {
          mark: {type: 'line', point: true},
          encoding: {
            x: {field: 'tokens', type: 'ordinal', title: 'tokens', axis: {labelAngle: 0}},
            y: {field: 'ratio', type: 'quantitative', title: 'times best peer'},
            color: {...recipe, title: 'recipe', scale: {scheme: 'tableau10'}},
            shape: {...recipe, title: 'recipe'},
          },
        },
      ],
    },
  };
}

async function drawSvg(plot) {
  const load = (name) => import(pathToFileURL(peers.resolve(name)));
  const [vega, vegaLite] = [await load('vega'), await load('vega-lite')];
  const view = new vega.View(vega.parse(vegaLite.compile(plot).spec), {renderer: 'none'});
  return view.toSVG();
}

/** The runs that are kept, by instruction set. */
const kept = () =>
  readdirSync(results)
    .filter((name) => name.endsWith('.json'))
    .sort()
    .map((name) => JSON.parse(readFileSync(join(results, name), 'utf8')));

const described = ({machine, peers: versions, date}) => {
  const engine = Object.entries(versions).map(([name, version]) => `, ${name} ${version}`);
  return `${machine.cpu.trim()}, ${machine.cores} cores, Node ${machine.node}${engine.join('')}, ${date}.`;
};

const [file] = process.argv.slice(2);
mkdirSync(results, {recursive: true});
const {machine, peers: versions, rows} = JSON.parse(readFileSync(file, 'utf8'));
const run = {date: new Date().toISOString().slice(0, 10), machine, peers: versions, rows};
writeFileSync(join(results, `cpu_${machine.isa}.json`), `${JSON.stringify(run)}\n`);

const sections = [];
for (const one of kept()) {
  const {isa} = one.machine;
  const picture = `benchmarks_cpu_${isa}.svg`;
  writeFileSync(join(docs, picture), `${await drawSvg(plotOf(one))}\n`);
  sections.push(
    [
      `## ${isa}`,
      described(one),
      `From ${LONG} tokens on, least / median of the cases:`,
      summary(one.rows),
      `![Times as fast as the best peer](${picture})`,
      `${table(one.rows)}\n`,
    ].join('\n\n'),
  );
}
writeFileSync(
  join(docs, 'benchmarks_cpu.md'),
  `# CPU benchmarks

Written by \`npm run bench -- --peers\`; what is compared, and how it is timed, is told in [bench/README.md](../bench/README.md). Each line is one case
on that many threads: the fastest peer with its median time of one call in milliseconds, then how many times as fast as it each recipe is (medians).
Packing, quantisation and smoothing are in our times. A section is an instruction set of the native engine, to which
onnxruntime and torch are held too where it is AVX2, as on a machine without AVX-512.

${sections.join('\n')}`,
);
console.log(`Written: docs/benchmarks_cpu.md and its plots, from ${file}.`);
