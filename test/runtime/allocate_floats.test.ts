/** Arrays of results: each has its memory for itself, as users who transfer it to a worker expect. */
import {platform as browser} from '../../src/platform/browser';
import {platform as node} from '../../src/platform/node';

describe.each([
  ['node', node],
  ['browser', browser],
])('%s', (_, {allocateFloats}) => {
  it.each([0, 1, 3, 100_000])('%d elements', (count) => {
    const values = allocateFloats(count);
    expect(values).toBeInstanceOf(Float32Array);
    expect(values).toHaveLength(count);
    expect(values.byteOffset).toBe(0);
    expect(values.buffer.byteLength).toBe(4 * count);
  });

  it('can be transferred', () => {
    const values = allocateFloats(1000).fill(1.5);
    const received = structuredClone(values, {transfer: [values.buffer as ArrayBuffer]});
    expect([...received]).toEqual(Array<number>(1000).fill(1.5));
    expect(values).toHaveLength(0);
  });

  it('refuses what is too large', () => {
    expect(() => allocateFloats(2 ** 52)).toThrow(RangeError);
  });
});

it('is not zeros in tests', () => {
  expect([...node.allocateFloats(3)]).toEqual([NaN, NaN, NaN]);
});
