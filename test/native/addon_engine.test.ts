/** Engine `native`: configuration and environment, errors of this realm, aborts. */
import type * as ConfigModule from '../../src/runtime/config.js';
import type * as ErrorsModule from '../../src/runtime/errors.js';
import type * as NativeModule from '../../src/engines/native.js';
import {PRECISIONS, resolveRecipe, type Recipe} from '../../src/numerics/recipes.js';
import {loadAddon} from '../../src/runtime/load_addon.js';
import {exactAttention} from '../../src/numerics/reference.js';
import {CASES, makeInputs, problemOf} from '../cases.js';
import type {ForwardBuffers} from '../../src/engines/engine.js';

const VARIABLES = ['SAGE_CPU_ISA', 'SAGE_NUM_THREADS', 'SAGE_NATIVE_PATH'] as const;
type Variables = Partial<Record<(typeof VARIABLES)[number], string>>;

const shape = CASES.find((c) => c.name === 'N 17')!;
const problem = problemOf(shape, resolveRecipe('exact', {}) as Recipe);

function makeBuffers(): ForwardBuffers {
  const inputs = makeInputs(shape, 1);
  const {o, lse} = exactAttention(problem, inputs.q, inputs.k, inputs.v, null);
  return {...inputs, o: new Float32Array(o.length), lse: new Float32Array(lse.length)};
}

const buffers = makeBuffers();

interface Fresh {
  readonly config: typeof ConfigModule;
  readonly errors: typeof ErrorsModule;
  readonly native: typeof NativeModule;
}

/** Runs `use` on modules that have read nothing yet, under the given environment. */
async function withEnvironment(
  variables: Variables,
  use: (fresh: Fresh) => void | Promise<void>,
): Promise<void> {
  const before = VARIABLES.map((name) => [name, process.env[name]] as const);
  for (const name of VARIABLES) {
    if (name in variables) process.env[name] = variables[name];
    else if (name !== 'SAGE_NATIVE_PATH') Reflect.deleteProperty(process.env, name);
  }
  try {
    await jest.isolateModulesAsync(async () => {
      const config = await import('../../src/runtime/config.js');
      const errors = await import('../../src/runtime/errors.js');
      const native = await import('../../src/engines/native.js');
      await use({config, errors, native});
    });
  } finally {
    for (const [name, value] of before) {
      if (value === undefined) Reflect.deleteProperty(process.env, name);
      else process.env[name] = value;
    }
  }
}

const {addon} = loadAddon();
if (addon === null) throw new Error('build/Release holds no addon: npm run build:native');
const {available, detected} = addon.capabilities().isa;
const missing = (['avx2', 'avx512', 'avx512_bf16', 'amx'] as const).filter(
  (isa) => !available.includes(isa),
);

test('without any setting: the best instruction set, every processor, all recipes', async () => {
  await withEnvironment({}, ({native}) => {
    const {engine, reason, details} = native.nativeEngine();
    expect(engine?.name).toBe('native');
    expect(reason).toContain(detected);
    expect(details).toMatchObject({
      isa: {chosen: detected},
      threads: {chosen: addon.capabilities().threads.processors},
    });
    expect(PRECISIONS.filter((name) => !engine!.supports(name))).toEqual([]);
    engine!.forward(problem, buffers);
    expect(buffers.o.every(Number.isFinite)).toBe(true);
  });
});

test.each(available)('SAGE_CPU_ISA=%s', async (isa) => {
  await withEnvironment({SAGE_CPU_ISA: isa, SAGE_NUM_THREADS: '1'}, ({native}) => {
    const {engine, reason, details} = native.nativeEngine();
    expect(details).toMatchObject({isa: {chosen: isa}, threads: {chosen: 1}});
    expect(reason).toMatch(new RegExp(`${isa}.*, 1 thread$`));
    expect(engine!.preferred).toBe(
      {
        portable: 'exact',
        avx2: 'int8_int16',
        avx512: 'int8_int16',
        avx512_bf16: 'int8_bf16',
        amx: 'int8_bf16',
        neon: 'exact',
        neon_dot: 'int8_int16',
      }[isa],
    );
    engine!.forward(problem, buffers);
  });
});

// Machines that run everything have nothing to refuse.
(missing.length > 0 ? test : test.skip)('an instruction set that this machine lacks', async () => {
  const isa = missing.at(-1)!;
  await withEnvironment({SAGE_CPU_ISA: isa}, ({native, errors, config}) => {
    expect(native.nativeEngine).toThrow(errors.SageAttentionError);
    expect(native.nativeEngine).toThrow(`cannot run the instruction set '${isa}'`);
    expect(native.nativeEngine).toThrow(addon.capabilities().isa.refused[isa]);
    expect(native.nativeEngine).toThrow(`'portable'`);
    // One more setting, and it works.
    config.configureSageAttention({isa: 'portable'});
    expect(native.nativeEngine().details).toMatchObject({isa: {chosen: 'portable'}});
    config.configureSageAttention({isa});
    expect(native.nativeEngine).toThrow(
      expect.objectContaining({code: 'unsupported-isa', argument: 'isa'}),
    );
  });
});

test.each<Variables>([
  {SAGE_NUM_THREADS: '0'},
  {SAGE_NUM_THREADS: '-2'},
  {SAGE_NUM_THREADS: '1.5'},
  {SAGE_NUM_THREADS: 'many'},
  {SAGE_CPU_ISA: 'sse9'},
])('the environment %j is refused at first use', async (variables) => {
  await withEnvironment(variables, ({native, errors}) => {
    expect(native.nativeEngine).toThrow(errors.SageAttentionError);
    expect(native.nativeEngine).toThrow(Object.values(variables)[0]);
  });
});

test('more threads than the pool holds are cut to its size', async () => {
  await withEnvironment({SAGE_NUM_THREADS: '99999'}, ({native}) => {
    expect(native.nativeEngine().details).toMatchObject({threads: {chosen: 1024}});
  });
});

test('a path that does not load leads to the next source, and is told', async () => {
  await withEnvironment({SAGE_NATIVE_PATH: '/nowhere/sage_attention.node'}, ({native}) => {
    const {engine, details} = native.nativeEngine();
    expect(engine).not.toBeNull();
    expect(details['attempts']).toMatchObject([
      {source: 'SAGE_NATIVE_PATH', ok: false, code: 'not-found', message: 'there is no such file'},
      {source: 'build/Release', ok: true},
    ]);
  });
});

test('a change of configuration reaches the next call', async () => {
  await withEnvironment({}, ({native, config}) => {
    const first = native.nativeEngine();
    expect(native.nativeEngine()).toBe(first);
    config.configureSageAttention({threads: 3});
    expect(native.nativeEngine().details).toMatchObject({threads: {chosen: 3}});
  });
});

describe('errors and aborts', () => {
  const use = (test: (fresh: Fresh) => void | Promise<void>) => () => withEnvironment({}, test);

  test(
    'a failure of the addon is a SageAttentionError of this realm',
    use(async ({native, errors}) => {
      const {engine} = native.nativeEngine();
      const short = {...buffers, q: buffers.q.subarray(1)};
      expect(() => engine!.forward(problem, short)).toThrow(errors.SageAttentionError);
      expect(() => engine!.forward(problem, short)).toThrow('q: the array is too short');
      await expect(engine!.forwardAsync(problem, short)).rejects.toMatchObject({
        code: 'engine-failed',
      });
      await expect(engine!.forwardAsync(problem, short)).rejects.toBeInstanceOf(Error);
    }),
  );

  test(
    'the same numbers without an abort',
    use(async ({native}) => {
      const {engine} = native.nativeEngine();
      const other = makeBuffers();
      engine!.forward(problem, buffers);
      await engine!.forwardAsync(problem, other, new AbortController().signal);
      expect(other.o).toEqual(buffers.o);
      expect(other.lse).toEqual(buffers.lse);
    }),
  );

  test(
    'an abort rejects with its reason, before, during or after',
    use(async ({native}) => {
      const {engine} = native.nativeEngine();
      const reason = new Error('enough');
      await expect(
        engine!.forwardAsync(problem, buffers, AbortSignal.abort(reason)),
      ).rejects.toBe(reason);
      for (const delayMs of [0, 1]) {
        const controller = new AbortController();
        const length = 2048;
        const q = new Float32Array(4 * length * 32).fill(0.5);
        const strides = {batch: q.length, head: length * 32, token: 32};
        const big = {
          ...problem, batch: 1, qHeads: 4, kvHeads: 4, qLen: length, kvLen: length, wantLse: false,
          q: strides, k: strides, v: strides, o: strides,
        };
        const o = new Float32Array(q.length);
        const pending = engine!.forwardAsync(
          big,
          {q, k: q, v: q, mask: null, o, lse: null},
          controller.signal,
        );
        if (delayMs > 0) await new Promise((resolve) => setTimeout(resolve, delayMs));
        controller.abort(reason);
        await expect(pending).rejects.toBe(reason);
      }
    }),
  );
});
