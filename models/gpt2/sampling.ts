// Choosing the next token, as every language model here does.

export {createSampler, likeliest, type Sampler, type SamplingOptions} from '../sampling.js';
