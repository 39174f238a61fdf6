"""The Triton kernels, one file an op with the name of the op; installed as ``pinmem.kernels``."""
