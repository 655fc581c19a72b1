/**
 * Memory that calls leave behind, told apart from what V8 takes for itself: its young generation may grow by tens of MiB in
 * the middle of a loop that leaves nothing, and does so at another call on every machine.
 */
import {setFlagsFromString} from 'node:v8';
import {runInNewContext} from 'node:vm';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as (options?: {type: 'minor'}) => void;

const MEBIBYTE = 2 ** 20;

/** Bytes by which memory grew over the last 70 % of the calls. */
export interface MemoryGrowth {
  /** Objects of JavaScript that are still alive, their array buffers included. */
  readonly objects: number;
  /** Pages of the process outside V8's heap: what native code allocated, array buffers once more. */
  readonly process: number;
}

function measure(): MemoryGrowth {
  // The second collection waits until the first has given its array buffers back.
  collectGarbage();
  collectGarbage();
  const {rss, heapTotal, heapUsed, external} = process.memoryUsage();
  return {objects: heapUsed + external, process: rss - heapTotal};
}

/** Runs `call` `calls` times; the first 30 % may allocate what is kept for later calls. */
export function memoryGrowth(calls: number, call: (i: number) => void): MemoryGrowth {
  const settled = Math.floor(0.3 * calls);
  // Often enough that the garbage between two collections, which malloc keeps for itself, stays below a MiB.
  const interval = Math.ceil(calls / 200);
  let before = measure();
  for (let i = 1; i <= calls; i += 1) {
    call(i);
    if (i % interval === 0) collectGarbage({type: 'minor'});
    if (i === settled) before = measure();
  }
  const after = measure();
  return {objects: after.objects - before.objects, process: after.process - before.process};
}

/**
 * Holds after a loop that leaves nothing. Objects varied by .4 MiB and the process by 1.7 MiB (V8's young generation between 1 and
 * 384 MiB); one output of 2 KiB kept by each of 7,000 calls is 14 MiB.
 */
export function expectNothingLeft(growth: MemoryGrowth): void {
  expect(growth.objects).toBeLessThan(1 * MEBIBYTE);
  expect(growth.process).toBeLessThan(6 * MEBIBYTE);
}
