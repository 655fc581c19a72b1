// Attention by plain tfjs ops, as every model here takes it by default.

export {plainAttention} from '../plain_attention.js';
