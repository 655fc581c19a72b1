/** Running long work in slices, so that the event loop breathes between them. */

/** Work per slice. One frame at 60 Hz has 16.7 ms: half of it stays free. */
const SLICE_MS = 8;

/**
 * Resolves in a later turn of the event loop, after pending input and timers had their chance.
 * `setImmediate` where it exists: Node drains a message port without returning to its timers. Else a message:
 * browsers delay nested timers by 4 ms.
 */
function nextTurn(): Promise<void> {
  return new Promise((resolve) => {
    if (typeof setImmediate === 'function') {
      setImmediate(resolve);
    } else if (typeof MessageChannel === 'function') {
      const {port1, port2} = new MessageChannel();
      port1.onmessage = () => {
        port1.close();
        resolve();
      };
      port2.postMessage(null);
    } else {
      setTimeout(resolve, 0);
    }
  });
}

/** Runs `steps` to its end, slice by slice. Rejects with the signal's reason once it is aborted, and does no more work. */
export async function runInSlices(steps: Iterator<void>, signal?: AbortSignal): Promise<void> {
  for (;;) {
    signal?.throwIfAborted();
    const end = performance.now() + SLICE_MS;
    do {
      if (steps.next().done) return;
    } while (performance.now() < end);
    await nextTurn();
  }
}
