/**
 * Memory that calls leave behind, told apart from what V8 takes for itself: its young generation may grow by tens of MiB in
 * the middle of a loop that leaves nothing, and does so at another call on every machine.
 */
import {setFlagsFromString} from 'node:v8';
import {runInNewContext} from 'node:vm';

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as (options?: {type: 'minor'}) => void;

const MEBIBYTE = 2 ** 20;

/** Bytes by which memory grew. */
interface MemoryGrowth {
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

function growthOver(calls: number, call: () => void): MemoryGrowth {
  // Often enough that the garbage between two collections, which malloc keeps for itself, stays below a MiB.
  const interval = Math.ceil(calls / 200);
  const before = measure();
  for (let i = 0; i < calls; i += 1) {
    call();
    if (i % interval === 0) collectGarbage({type: 'minor'});
  }
  const after = measure();
  return {objects: after.objects - before.objects, process: after.process - before.process};
}

/**
 * Loops that leave nothing: objects varied by .4 MiB and the process by 1.7 MiB (V8's young generation between 1 and 384 MiB). One
 * output of 2 KiB kept by each of 7,000 calls is 14 MiB.
 */
const BOUNDS: MemoryGrowth = {objects: 1 * MEBIBYTE, process: 6 * MEBIBYTE};

/** What is lost by calls is lost every time; V8 gives pages of its heap back, or keeps them, now and then. */
const ROUNDS = 3;

/**
 * Expects that `calls` calls leave nothing behind; .4 as many before them may allocate what is kept for later ones.
 * @param call Is given its number, from 0 on.
 * @returns How often it was called.
 */
export function expectNothingLeft(calls: number, call: (i: number) => void): number {
  let called = 0;
  const next = () => {
    call(called);
    called += 1;
  };
  while (called < 0.4 * calls) next();
  let least: MemoryGrowth = {objects: Infinity, process: Infinity};
  for (let round = 0; round < ROUNDS; round += 1) {
    const {objects, process} = growthOver(calls, next);
    least = {
      objects: Math.min(least.objects, objects),
      process: Math.min(least.process, process),
    };
    if (least.objects < BOUNDS.objects && least.process < BOUNDS.process) break;
  }
  expect(least.objects).toBeLessThan(BOUNDS.objects);
  expect(least.process).toBeLessThan(BOUNDS.process);
  return called;
}
