/** Stand-in for an optional peer that is not installed here; it re-exports tfjs. */
declare module '@tensorflow/tfjs-node-gpu' {
  export * from '@tensorflow/tfjs';
}
