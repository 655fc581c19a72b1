/**
 * What the rest of the package may ask of the machine it runs on. `#platform` (package.json, `imports`) is bound to
 * `node.ts` in Node and to `browser.ts` everywhere else, so that no browser bundle ever sees a `node:` import.
 */

/** How a child process ended. `status` is null when a signal or the time limit ended it. */
export interface ChildResult {
  readonly status: number | null;
  readonly signal: string | null;
  readonly timedOut: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

export interface Platform {
  readonly name: 'node' | 'browser';
  /** `process.platform`, such as `linux`; null in browsers. */
  readonly os: string | null;
  /** `process.arch`, such as `x64`; null in browsers. */
  readonly arch: string | null;
  /** Which C library the process is linked with; null where the question has no answer. */
  readonly libc: 'glibc' | 'musl' | null;
  /** `process.version`, such as `v20.11.0`; null in browsers. */
  readonly nodeVersion: string | null;
  /** Processors this process may use, at least 1. */
  readonly processors: number;
  /** Directory that holds this package's package.json; null in browsers and in bundles that left it behind. */
  readonly packageRoot: string | null;

  /**
   * An array that the caller writes in full: until then it holds what the memory held. Zeroing outputs takes up to a tenth
   * of a batch of short calls, on one thread.
   */
  allocateFloats(count: number): Float32Array;
  /** Value of an environment variable; undefined when unset, empty or in a browser. Only runtime/config.ts asks. */
  env(variable: string): string | undefined;
  /** Joins path segments in the system's way; in browsers with `/`. */
  joinPath(...segments: string[]): string;
  /** Whether a file or directory is there. Browsers: false. */
  exists(path: string): boolean;
  /** Text of a UTF-8 file, null when it cannot be read. Browsers: null. */
  readText(path: string): string | null;
  /** Bytes of a file, null when it cannot be read. Browsers: null. */
  readBytes(path: string): Uint8Array | null;
  /**
   * Loads a `.node` file and returns its exports. The loader's own error is thrown when it cannot be loaded;
   * a damaged file may end the process, so `runNode` tries an unknown file first. Browsers: throws.
   */
  loadNativeModule(path: string): unknown;
  /** File that a package or package file resolves to as seen from this package, null when it is not installed. */
  resolveModule(specifier: string): string | null;
  /** CommonJS exports of a package that somebody has already required, null otherwise. Loads nothing. */
  loadedModule(specifier: string): unknown;
  /** Runs this Node with arguments and waits for its end; `environment` is laid over the present one. Browsers: null. */
  runNode(
    args: readonly string[],
    options: {
      readonly timeoutMs: number;
      readonly environment?: Readonly<Record<string, string | undefined>>;
    },
  ): ChildResult | null;
}
