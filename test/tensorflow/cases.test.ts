/** The op inside TensorFlow on the case table: outputs, lse and gradients, all computed by the op itself. */
import * as tf from '@tensorflow/tfjs-core';
import {chooseEngine} from '../../src/engines/choose_engine';
import {loadAddon} from '../../src/runtime/load_addon';
import {checkForward, checkGradients} from '../kernels/check_cases';
import {loadTensorflowBackend} from './tensorflow_backend';

let callsBefore = 0;
const callsOfOp = () => loadAddon().addon?.tensorflowTrace().calls ?? NaN;

beforeAll(async () => {
  loadTensorflowBackend();
  await tf.setBackend('tensorflow');
  // Engine `native` on a CPU, `cuda` on a GPU.
  expect(chooseEngine('tensorflow', 'exact')).toMatchObject({hostCopy: false});
  callsBefore = callsOfOp();
});

let tests = 0;
afterEach(() => {
  tests += 1;
});

checkForward(6e6);
checkGradients(1.2e6);

it('all of it was computed by the op', () => {
  // A case with a gradient runs both ops; problems without rows or keys need none.
  expect(callsOfOp() - callsBefore).toBeGreaterThan(tests);
});
