// Order of test files: those that run a model or every code path of the addon first, so that no worker is left alone
// with a long one at the end. Within a kind jest's own order holds (failed before, then longest, then largest).
const {default: Sequencer} = require('@jest/test-sequencer');

const LONG_KINDS = ['models', 'native'];

function rank(test) {
  const index = LONG_KINDS.indexOf(test.context.config.displayName?.name);
  return index < 0 ? LONG_KINDS.length : index;
}

module.exports = class LongestFirst extends Sequencer {
  sort(tests) {
    return [...super.sort(tests)].sort((a, b) => rank(a) - rank(b));
  }
};
