/**
 * Memory that nobody has written holds NaN in every test, so that an element of a result which an engine leaves out is seen; what
 * lies there otherwise is often 0, and right by chance.
 */
Buffer.allocUnsafeSlow = (size) => Buffer.alloc(size, 0xff);
