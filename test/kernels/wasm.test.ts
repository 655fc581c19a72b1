/** The kernels of backend `wasm` on the case table. */
import {checkForward, checkGradients} from './check_cases';
import {useBackend} from './backends';

beforeAll(() => useBackend('wasm'));

checkForward(6e6);
checkGradients(1.2e6);
