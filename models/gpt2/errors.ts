// What can be wrong with a GPT-2 model or a call of it: as with every model here.

export {ModelError as Gpt2Error, type ModelErrorPlace as Gpt2ErrorPlace} from '../model_error.js';
