// A picture of attention that grows downwards: a line for each new byte, a column for each of the latest bytes.

/** Bytes that a line shows. */
const COLUMNS = 192;

/** Lines before the picture scrolls. */
const LINES = 96;

/** From no weight to all of it: a ramp whose lightness rises evenly, so that it reads without colour too. */
const RAMP = [
  [13, 17, 33],
  [43, 38, 98],
  [108, 45, 122],
  [178, 62, 104],
  [233, 115, 76],
  [251, 213, 120],
] as const;

export class HeatMap {
  private readonly context: CanvasRenderingContext2D;
  private lines = 0;

  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly name: string,
  ) {
    canvas.width = COLUMNS;
    canvas.height = LINES;
    const context = canvas.getContext('2d');
    if (context === null) throw new Error('The browser draws no canvas.');
    this.context = context;
    this.clear();
  }

  clear(): void {
    this.lines = 0;
    this.context.fillStyle = `rgb(${RAMP[0].join()})`;
    this.context.fillRect(0, 0, COLUMNS, LINES);
    this.canvas.setAttribute('aria-label', `${this.name}: nothing yet`);
  }

  /** @param weights of the newest byte to all before it and itself; they sum to 1 */
  add(weights: Float32Array): void {
    if (this.lines === LINES) {
      this.context.drawImage(this.canvas, 0, -1);
      this.lines--;
    }
    const line = this.context.createImageData(COLUMNS, 1);
    const first = weights.length - COLUMNS;
    for (let column = 0; column < COLUMNS; column++) {
      line.data.set(colourOf(weights[first + column] ?? 0), 4 * column);
    }
    this.context.putImageData(line, 0, this.lines++);
    const strongest = weights.indexOf(weights.reduce((a, b) => Math.max(a, b), 0));
    const back = weights.length - 1 - strongest;
    this.canvas.setAttribute(
      'aria-label',
      `${this.name}: ${this.lines} lines; the newest byte looks most at ` +
        (back === 0 ? 'itself' : `the byte ${back} before it`),
    );
  }
}

/** Red, green, blue and alpha. The fourth root makes small weights visible beside large ones. */
function colourOf(weight: number): number[] {
  const place = Math.min(1, Math.max(0, weight)) ** 0.25 * (RAMP.length - 1);
  const below = Math.min(RAMP.length - 2, Math.floor(place));
  const low = RAMP[below] ?? RAMP[0];
  const high = RAMP[below + 1] ?? RAMP[0];
  const rest = place - below;
  return [...low.map((value, i) => value + rest * ((high[i] ?? 0) - value)), 255];
}
