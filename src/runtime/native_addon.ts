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
    /** Whose kernels `chosen` runs first; what `amx` has none of its own for takes those of `avx512_bf16`. */
    readonly kernels: Isa;
    readonly available: readonly Isa[];
    /** Why the others are not: build, processor, or the system's permission (`amx`). */
    readonly refused: Readonly<Partial<Record<Isa, string>>>;
  };
  readonly threads: {
    readonly chosen: number;
    /** Processors that affinity and control groups leave to this process. */
    readonly processors: number;
    /** Helper threads of the process-wide pool that exist now. */
    readonly started: number;
    readonly max: number;
  };
  readonly cuda: CudaFacts;
}

/** What build and driver offer of CUDA. */
export interface CudaFacts {
  /** Whether this build has CUDA kernels. */
  readonly built: boolean;
  readonly available: boolean;
  /** What runs, or why nothing does. */
  readonly reason: string;
  /** As CUDA counts: 13000 is 13.0; 0 without one. */
  readonly driverVersion: number;
  readonly runtimeVersion: number;
  readonly deviceCount: number;
  readonly deviceName: string;
  /** 90 is sm_90; 0 without a device. */
  readonly computeCapability: number;
  readonly multiprocessors: number;
  /** Machine code in this build, such as `sm_80 sm_90`. */
  readonly architectures: string;
}

/** A device that the driver shows. */
export interface CudaDevice {
  readonly name: string;
  /** `GPU-...` */
  readonly uuid: string;
  readonly computeCapability: number;
  /** Those of this slice, where a device is cut into slices (MIG). */
  readonly multiprocessors: number;
  /** Bytes. */
  readonly memory: number;
  /** Whether the kernels run there. */
  readonly supported: boolean;
}

/** The CUDA engine on arrays of this process, as it stands. */
export interface CudaHostState {
  readonly available: boolean;
  /** Which device, or why none. */
  readonly reason: string;
  /** -1 as long as none is chosen. */
  readonly device: number;
  /** CUDA reported an error after which this process cannot use it again. */
  readonly failed: boolean;
  /** Bytes of device memory and of page-locked memory that are held, in use and kept for later calls. */
  readonly deviceBytes: number;
  readonly pinnedBytes: number;
  /** Most device memory that is held, bytes. */
  readonly deviceLimit: number;
}

/** Names of the ops inside TensorFlow. Each takes exactly the inputs that native/tensorflow_kernels.h lists. */
export interface TensorflowOpNames {
  readonly plain: string;
  readonly lse: string;
  readonly masked: string;
  readonly maskedLse: string;
  readonly grad: string;
  readonly gradMask: string;
  /** Of key/value caches (native/tensorflow_cache_kernels.h); absent from addons that have none. */
  readonly cache?: {
    readonly append: string;
    readonly plain: string;
    readonly lse: string;
    readonly masked: string;
    readonly maskedLse: string;
  };
}

/** What came of registering the ops with the TensorFlow of this process. */
export interface TensorflowRegistration {
  readonly state:
    'registered' | 'registered-by-other' | 'no-library' | 'missing-symbols' | 'failed';
  /** Name of TensorFlow's library, '' when none is loaded. */
  readonly library: string;
  /** TensorFlow's version, '' when unknown. */
  readonly version: string;
  /** Why it failed, '' when it did not. */
  readonly message: string;
  /** Functions that this TensorFlow lacks. */
  readonly missing: readonly string[];
  /** Whether the ops have kernels for GPUs too. */
  readonly gpu: boolean;
  /** Length of the int32 input `call`. */
  readonly callWords: number;
  readonly ops: TensorflowOpNames;
}

/** What the ops' kernels did last; for tests. */
export interface TensorflowTrace {
  readonly calls: number;
  /** Kernel objects that TensorFlow made. */
  readonly kernels: number;
  readonly device: '' | 'CPU' | 'GPU';
  /** Stream mode in force, '' on a CPU. */
  readonly order: string;
  /** Addresses of the input q and of the first output. */
  readonly q: bigint;
  readonly output: bigint;
  /** Way to the object asked for by `probeTensorflow`. */
  readonly way: string;
  readonly streamMode: string;
  readonly streamSearch: string;
}

/** A cache of the addon; it belongs to the thread that made it. */
export interface NativeCache {
  readonly [nativeCache]: true;
}
declare const nativeCache: unique symbol;

/** A cache of the addon in the memory of a GPU. */
export interface CudaCache {
  readonly [cudaCache]: true;
}
declare const cudaCache: unique symbol;

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
  /** A key/value cache (docs/numerics.md 8) with room for `capacity` tokens; form: 0 = float32, 1 = int8, 2 = int8_int16, 3 = int16. */
  cacheCreate(
    batch: number,
    kvHeads: number,
    qkDim: number,
    vDim: number,
    form: number,
    capacity: number,
  ): NativeCache;
  /** k [B,Hkv,n,D] and v [B,Hkv,n,Dv], contiguous. */
  cacheAppend(cache: NativeCache, k: Float32Array, v: Float32Array, tokens: number): void;
  cacheTruncate(cache: NativeCache, length: number): void;
  cacheFork(cache: NativeCache): NativeCache;
  cacheAttend(
    cache: NativeCache,
    words: Float64Array,
    q: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
  ): void;
  /** `cacheAttend` on another thread, over the tokens held now; for the rest as `forwardAsync`. */
  cacheAttendAsync(
    cache: NativeCache,
    words: Float64Array,
    q: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
    cancelled: Uint8Array,
  ): Promise<void>;
  /** Copies the codes of one head; csrc/include/sage/kv_cache.h has the shapes. */
  cacheInspect(
    cache: NativeCache,
    batch: number,
    kvHead: number,
    k: Int16Array,
    kScale: Float32Array,
    kMean: Float32Array,
    v: Int16Array,
    vScale: Float32Array,
  ): void;
  /** Bytes of all pages that it reads, those shared with forks included. */
  cacheBytes(cache: NativeCache): number;
  /** Frees its memory now; otherwise the garbage collector does. */
  cacheDispose(cache: NativeCache): void;
  /** Null when the CUDA kernels compute the problem on TensorFlow's device, else why not. */
  cudaSupports(words: Float64Array): string | null;
  /** `forward` on the CUDA engine. */
  cudaForward(
    words: Float64Array,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
  ): void;
  /** `forwardAsync` on the CUDA engine, which looks at `cancelled[0]` between pieces of a call. */
  cudaForwardAsync(
    words: Float64Array,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
    cancelled: Uint8Array,
  ): Promise<void>;
  /** `backward` on the CUDA engine. */
  cudaBackward(
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
  /** Milliseconds of each of `repeats` forward calls on inputs that lie in device memory, by events of the device. */
  timeCudaForward(
    words: Float64Array,
    q: Float32Array,
    k: Float32Array,
    v: Float32Array,
    mask: Mask,
    repeats: number,
  ): number[];
  /** Null when the CUDA engine computes the problem, else why not. */
  cudaHostSupports(words: Float64Array): string | null;
  /**
   * The device of the CUDA engine, by number or UUID; '' is the first that the kernels run on. The first choice holds
   * for the process. Null, or why not: `SAGE_INVALID_ARGUMENT` where the name is at fault.
   */
  cudaChooseDevice(name: string): {readonly code: string; readonly message: string} | null;
  cudaState(): CudaHostState;
  cudaDevices(): CudaDevice[];
  /** Most bytes of device memory that calls of this process hold together; 0: a quarter of the device's. */
  cudaLimitMemory(bytes: number): void;
  /** Frees the memory that no call uses; bytes freed. */
  cudaRelease(): number;
  /** Numbers by which the ops inside TensorFlow find a cache, as long as it is there. */
  cacheNumber(cache: NativeCache): number;
  cudaCacheNumber(cache: CudaCache): number;
  /** Null when the device of the CUDA engine holds caches of this shape, else why not. */
  cudaCacheSupports(...shape: Parameters<NativeAddon['cacheCreate']>): string | null;
  /** `cacheCreate` and the calls of its caches, in device memory; they throw what `cudaForward` does. */
  cudaCacheCreate(...shape: Parameters<NativeAddon['cacheCreate']>): CudaCache;
  cudaCacheAppend(cache: CudaCache, k: Float32Array, v: Float32Array, tokens: number): void;
  cudaCacheTruncate(cache: CudaCache, length: number): void;
  cudaCacheFork(cache: CudaCache): CudaCache;
  cudaCacheAttend(
    cache: CudaCache,
    words: Float64Array,
    q: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
  ): void;
  cudaCacheAttendAsync(
    cache: CudaCache,
    words: Float64Array,
    q: Float32Array,
    mask: Mask,
    o: Float32Array,
    lse: Float32Array | null,
    cancelled: Uint8Array,
  ): Promise<void>;
  cudaCacheInspect(
    cache: CudaCache,
    batch: number,
    kvHead: number,
    k: Int16Array,
    kScale: Float32Array,
    kMean: Float32Array,
    v: Int16Array,
    vScale: Float32Array,
  ): void;
  /** A cache of the CPU engine with the same codes. */
  cudaCacheToHost(cache: CudaCache): NativeCache;
  /** Bytes of device memory, shared with forks included. */
  cudaCacheBytes(cache: CudaCache): number;
  cudaCacheDispose(cache: CudaCache): void;
  /** Registers the ops with the TensorFlow that this process has loaded: once, and again only after `no-library`. */
  registerTensorflowOp(): TensorflowRegistration;
  tensorflowTrace(): TensorflowTrace;
  /** One of `TENSORFLOW_STREAMS`, for the whole process. */
  setTensorflowStream(mode: string): void;
  /** Later traces tell the way to an object whose class has this vtable; '' ends that. */
  probeTensorflow(vtableName: string): void;
}
