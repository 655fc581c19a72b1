// Child of peak_memory.test.ts: one forward call of the addon in a fresh process; prints how far the peak of resident memory
// rose above inputs and output.
//   node peak_memory_child.cjs ADDON '{"words": [...], "elements": n, "rows": n, "isa": "...", "threads": n}'
const {readFileSync} = require('node:fs');

const addon = require(process.argv[2]);
const {words, elements, rows, isa, threads} = JSON.parse(process.argv[3]);

/** Peak resident memory of this process in KiB. */
const peak = () => Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);

addon.configure({isa, threads});
const filled = () => {
  const x = new Float32Array(elements);
  for (let i = 0; i < elements; i++) x[i] = ((i * 2654435761) % 1024) / 512 - 1;
  return x;
};
const [q, k, v, o] = [filled(), filled(), filled(), filled()];
const lse = new Float32Array(rows).fill(1);
const before = peak();
addon.forward(Float64Array.from(words), q, k, v, null, o, lse);
process.stdout.write(JSON.stringify({risenKib: peak() - before, sum: o[0] + o[elements - 1]}));
