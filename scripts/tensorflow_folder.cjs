// Where the tests' TensorFlow is: SAGE_TENSORFLOW_DIR, or a folder outside the tree that `npm run test:tensorflow` fills.
const {homedir} = require('node:os');
const {join} = require('node:path');

exports.TENSORFLOW_VERSION = '2.21.0';

const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'tfjs-sage-attention');

/** Absolute path; it may not exist. */
exports.tensorflowFolder =
  process.env.SAGE_TENSORFLOW_DIR || join(cache, `test-tensorflow-${exports.TENSORFLOW_VERSION}`);
