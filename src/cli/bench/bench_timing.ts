/**
 * Timing of several contenders for one job in one process: they take turns, the order is reversed every other round,
 * each warms up outside the clock, and medians and minima of the rounds are told.
 */

/** One that computes the job. */
export interface Contender {
  readonly engine: string;
  readonly precision: string;
  /** Contenders of one group share a pool of threads; between two groups those of the first are left time to sleep. */
  readonly group: string;
  /** Computes once and lets go of the result. */
  run(): void | Promise<void>;
  /** Milliseconds of that many runs together, by a clock nearer to the work, where it is done in another process. */
  time?(count: number): Promise<number>;
  /** Computes once and returns o as [heads, tokens, head_dim], to be compared before anything is timed. */
  output(): Promise<Float32Array>;
  /** Frees what it holds. */
  dispose(): void | Promise<void>;
}

export interface Timing {
  /** Median over the rounds of the time of one run. */
  readonly ms: number;
  readonly minMs: number;
}

export interface TimingOptions {
  readonly rounds: number;
  /** A sample repeats a run until it has taken this long, so that the clock's steps do not count. */
  readonly sampleMs: number;
  /** Pause between two groups. */
  readonly idleMs: number;
}

/** Times of each contender, in their order. */
export async function timeInTurns(
  contenders: readonly Contender[],
  {rounds, sampleMs, idleMs}: TimingOptions,
): Promise<Timing[]> {
  const runs: number[] = [];
  for (const contender of contenders) {
    // The first run touches memory and starts threads; the second says how many runs make a sample.
    await contender.run();
    const ms = await timeRuns(contender, 1);
    runs.push(Math.max(1, Math.ceil(sampleMs / Math.max(ms, 1e-3))));
  }
  const samples = contenders.map((): number[] => []);
  let lastGroup: string | null = null;
  for (let round = 0; round < rounds; round++) {
    const order = [...contenders.keys()];
    if (round % 2 === 1) order.reverse();
    for (const i of order) {
      const contender = contenders[i] as Contender;
      if (idleMs > 0 && lastGroup !== contender.group) await sleep(idleMs);
      lastGroup = contender.group;
      // Rested caches and clocks, as in a program that calls it again and again.
      await contender.run();
      const count = runs[i] as number;
      samples[i]?.push((await timeRuns(contender, count)) / count);
    }
  }
  return samples.map((times) => ({ms: median(times), minMs: Math.min(...times)}));
}

async function timeRuns(contender: Contender, count: number): Promise<number> {
  if (contender.time !== undefined) return contender.time(count);
  const start = performance.now();
  for (let i = 0; i < count; i++) {
    const pending = contender.run();
    // A promise costs a turn of the event loop, which synchronous contenders do not owe.
    if (pending !== undefined) await pending;
  }
  return performance.now() - start;
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? NaN;
  return sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] ?? NaN)) / 2;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
