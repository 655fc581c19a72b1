/** Which engine holds a cache, asked row by row with made-up facts; and as this machine answers. */
import {findCacheEngine, type CacheFacts} from '../../src/engines/choose_cache_engine.js';
import {nativeEngine} from '../../src/engines/native.js';
import {typescriptEngine} from '../../src/engines/typescript/typescript_engine.js';

// Any engine stands for the native one: only whether there is one is looked at.
const there = {engine: typescriptEngine, reason: 'AVX2'};
const missing = {engine: null, reason: 'no addon for this machine'};
const device = {available: true, reason: 'CUDA device 0, H200 (sm_90)', refusal: null};
const facts: CacheFacts = {native: there, cuda: null, onGpu: false, required: 'auto'};

const rows: readonly (readonly [string, Partial<CacheFacts>, string | null, RegExp])[] = [
  ['arrays of this process', {}, 'native', /^AVX2$/],
  ['no addon', {native: missing}, 'typescript', /no native engine: no addon for this machine/],
  ['cuda asked by name', {required: 'cuda', cuda: device}, 'cuda', /H200.*as configured$/],
  ['tensors on a GPU', {onGpu: true, cuda: device}, 'cuda', /^in the memory of CUDA device 0/],
  ['a GPU beside arrays', {cuda: device}, 'native', /^AVX2$/],
  [
    'tensors on a GPU, native asked by name',
    {onGpu: true, cuda: device, required: 'native'},
    'native',
    /^AVX2, as configured$/,
  ],
  [
    'no driver',
    {required: 'cuda', cuda: {...device, available: false, reason: 'no driver'}},
    'native',
    /^AVX2; not on a GPU: no driver$/,
  ],
  [
    'a precision that the device has not',
    {onGpu: true, cuda: {...device, refusal: 'int8 codes only'}},
    'native',
    /^AVX2; not on a GPU: int8 codes only$/,
  ],
  [
    'no driver and no addon',
    {required: 'cuda', native: missing, cuda: {...device, available: false, reason: 'no driver'}},
    'typescript',
    /no native engine.*not on a GPU: no driver/,
  ],
  ['typescript asked by name', {required: 'typescript'}, 'typescript', /^portable TypeScript$/],
  ['composition asked by name', {required: 'composition'}, 'typescript', /^portable TypeScript$/],
  ['native asked by name, missing', {required: 'native', native: missing}, null, /^$/],
];

test.each(rows)('%s', (_name, changes, engine, reason) => {
  const choice = findCacheEngine({...facts, ...changes});
  expect(choice?.engine ?? null).toBe(engine);
  expect(choice?.reason ?? '').toMatch(reason);
});

test('the facts of this machine are of that form', () => {
  const {engine, reason} = nativeEngine();
  expect(findCacheEngine({...facts, native: {engine, reason}})?.reason).toContain(reason);
});
