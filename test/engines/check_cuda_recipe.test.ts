/** The check that kernels compute attention at all, with engines of this process in the place of a GPU. */
import {checkCudaRecipe} from '../../src/engines/check_cuda_recipe';
import type {Engine} from '../../src/engines/engine';
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine';

const never = () => null;

/** An engine that spoils what the TypeScript engine computes. */
function spoiling(spoil: (o: Float32Array) => void): Engine {
  return {
    ...typescriptEngine,
    forward(problem, buffers) {
      typescriptEngine.forward(problem, buffers);
      spoil(buffers.o);
    },
  };
}

test.each(['exact', 'int8_fp8', 'int4_fp8', 'fp4'] as const)('%s is attention', (precision) => {
  expect(checkCudaRecipe(precision, typescriptEngine, typescriptEngine, never)).toBeNull();
});

test.each([
  ['zeros', (o: Float32Array) => void o.fill(0)],
  ['a NaN', (o: Float32Array) => void (o[70] = NaN)],
  ['rows in another order', (o: Float32Array) => void o.reverse()],
])('%s is not', (_, spoil) => {
  expect(checkCudaRecipe('fp4', spoiling(spoil), typescriptEngine, never)).toMatch(/relative L1/);
});

test('what another engine computed proves nothing', () => {
  let calls = 0;
  const refusal = () => (calls++ === 0 ? null : 'no memory');
  expect(checkCudaRecipe('fp4', typescriptEngine, typescriptEngine, refusal)).toBe('no memory');
});
