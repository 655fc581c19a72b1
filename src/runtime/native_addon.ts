/**
 * The exports of the native addon (native/*.cc), typed by hand. Arrays are read and written in place, at their byte
 * offsets; every length is checked before anything runs. Errors are plain objects with a `code` (`SAGE_...`) from
 * another realm: `engines/native.ts` turns them into SageAttentionError.
 */
import type {Isa} from './config.js';

/** Mask of a call: float32 when additive, bytes when boolean, null when there is none. */
type Mask = Float32Array | Uint8Array | null;

/** What the addon says about itself and the machine. */
export interface NativeCapabilities {
  /** Version of the package that the addon was built from. */
  readonly version: string;
  /** Wire format of `encodeProblem` that it understands. */
  readonly problemVersion: number;
  readonly problemWords: number;
  /** The processor's name of itself. */
  readonly cpu: string;
  /** Features that processor and operating system both support, such as `avx512vnni`. */
  readonly features: Readonly<Record<string, boolean>>;
  readonly isa: {
    readonly detected: Isa;
    readonly chosen: Isa;
    /** Whose kernels `chosen` runs: `amx` has none of its own yet and runs those of `avx512_bf16`. */
    readonly kernels: Isa;
    readonly available: readonly Isa[];
  };
  readonly threads: {
    readonly chosen: number;
    /** Processors that affinity and control groups leave to this process. */
    readonly processors: number;
    /** Helper threads of the process-wide pool that exist now. */
    readonly started: number;
    readonly max: number;
  };
}

/** Functions of the addon; `words` come from `encodeProblem`, shapes from the problem. */
export interface NativeAddon {
  forward(
    words: Float64Array,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
  ): void;
  /**
   * `forward` on another thread. A 1 in `cancelled[0]` ends it at its next tile (code `SAGE_CANCELLED`). The arrays
   * are kept alive until then, but their memory must stay in place: no transfer, no growth of a WebAssembly memory.
   */
  forwardAsync(
    words: Float64Array,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
    cancelled: Uint8Array,
  ): Promise<void>;
  backward(
    words: Float64Array,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array,
    dO: Float32Array,
    dLse: Float32Array | null,
    dQ: Float32Array,
    dK: Float32Array,
    dV: Float32Array,
    dMask: Float32Array | null,
  ): void;
  /**
   * `forward` that also records the quantised operands (csrc/include/sage/quantize.h has their shapes).
   * @returns head_dim of the codes of q and k, padded.
   */
  quantize(
    words: Float64Array,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
    qCodes: Float32Array | null,
    qScale: Float32Array | null,
    kCodes: Float32Array | null,
    kScale: Float32Array | null,
    vCodes: Float32Array | null,
    vScale: Float32Array | null,
  ): number;
  /** Null or absent: the machine's default. Throws `SAGE_UNSUPPORTED_ISA` for what this machine cannot run. */
  configure(choice: {readonly isa?: Isa | null; readonly threads?: number | null}): void;
  capabilities(): NativeCapabilities;
}
