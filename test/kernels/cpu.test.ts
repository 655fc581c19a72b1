/** The kernels of backend `cpu` on the case table. */
import {checkForward, checkGradients} from './check_cases';
import {useBackend} from './backends';

beforeAll(() => useBackend('cpu'));

checkForward(6e6);
checkGradients(1.2e6);
