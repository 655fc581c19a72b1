/** Imported by the facade `tfjs-sage-attention/tfjs-node` before tfjs-node itself. */
import {prepareFacade} from './prepare_facade.js';

prepareFacade('@tensorflow/tfjs-node');
