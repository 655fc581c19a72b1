/** Options of `bench` with which a run is no whole comparison of the CPU engine with its peers. */
const PARTIAL = [
  '--case',
  '--precision',
  '--threads',
  '--models',
  '--gpu',
  '--json',
  '--help',
  '-h',
];

/** Whether a run of `bench` with these arguments is one whose tables docs/benchmarks_cpu.md shows. */
export function writesTables(args) {
  const given = (...names) => args.some((argument) => names.includes(argument.replace(/=.*/s, '')));
  return given('--peers', '--torch') && !given(...PARTIAL);
}
