/** An optional peer that a facade re-exports; it need not be installed to compile this package. */
declare module '@tensorflow/tfjs-node-gpu' {
  export * from '@tensorflow/tfjs';
}
