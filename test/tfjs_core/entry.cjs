// tfjs-core's tests as it publishes them, for backend 'tensorflow'. Bundled by run.cjs.
require('@tensorflow/tfjs-core/dist/public/chained_ops/register_all_chained_ops');
require('@tensorflow/tfjs-core/dist/register_all_gradients');
const {setTestEnvs} = require('@tensorflow/tfjs-core/dist/jasmine_util');

setTestEnvs([{name: 'test-tensorflow', backendName: 'tensorflow', flags: {}, isDataSync: true}]);
require('@tensorflow/tfjs-core/dist/tests');
