/** Imported by the facade `tfjs-sage-attention/tfjs-node-gpu` before tfjs-node-gpu itself. */
import {prepareFacade} from './prepare_facade.js';

prepareFacade('@tensorflow/tfjs-node-gpu');
