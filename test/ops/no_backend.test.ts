/** A call before tfjs has any backend. */
import '@tensorflow/tfjs-core';
import {sageAttention, sageAttentionAsync} from '../../src/index';

it('is refused in words', async () => {
  const rows = [[1, 2]];
  const expected = {code: 'no-backend', argument: null, message: /await tf\.ready\(\)/};
  expect(() => sageAttention(rows, rows, rows)).toThrow(
    expect.objectContaining({code: expected.code, argument: expected.argument}) as Error,
  );
  expect(() => sageAttention(rows, rows, rows)).toThrow(expected.message);
  await expect(sageAttentionAsync(rows, rows, rows)).rejects.toMatchObject({code: expected.code});
});
