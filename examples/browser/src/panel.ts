// One of the two columns: the text as it comes, how fast, and the picture of attention.

import {HeatMap} from './heat_map.js';

export class Panel {
  readonly heatMap: HeatMap;
  private readonly text: HTMLElement;
  private fresh: HTMLElement | undefined;
  // A character may take several bytes.
  private decoder = new TextDecoder();

  constructor(
    private readonly root: HTMLElement,
    name: string,
  ) {
    this.text = this.part('.text');
    this.heatMap = new HeatMap(this.part('canvas'), name);
  }

  set title(title: string) {
    this.part('h2').textContent = title;
  }

  set engine(engine: string) {
    this.part('.engine').textContent = engine;
  }

  /** @param prompt shown before what is new */
  begin(prompt: string): void {
    this.decoder = new TextDecoder();
    this.heatMap.clear();
    this.fresh = document.createElement('span');
    this.fresh.className = 'new';
    this.text.replaceChildren(prompt, this.fresh);
    this.part('.prefill').textContent = '-';
    this.part('.speed').textContent = '-';
    this.text.scrollTop = this.text.scrollHeight;
  }

  /** A new byte. */
  add(byte: number): void {
    this.fresh?.append(this.decoder.decode(Uint8Array.of(byte), {stream: true}));
    this.text.scrollTop = this.text.scrollHeight;
  }

  prefill(bytes: number, ms: number): void {
    this.part('.prefill').textContent = `${bytes} bytes in ${ms.toFixed(0)} ms`;
  }

  speed(tokensPerSecond: number): void {
    this.part('.speed').textContent = `${tokensPerSecond.toFixed(1)} tokens/s`;
  }

  private part<T extends HTMLElement>(selector: string): T {
    const part = this.root.querySelector<T>(selector);
    if (part === null) throw new Error(`The page lacks ${selector}.`);
    return part;
  }
}
