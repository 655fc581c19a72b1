/** The kernels of a backend that this package does not know, on the case table: exact attention composed of tfjs ops. */
import {checkForward, checkGradients} from './check_cases';
import {UNKNOWN_BACKEND, useBackend} from './backends';

beforeAll(() => useBackend(UNKNOWN_BACKEND));

checkForward(4e5);
checkGradients(1e5);
