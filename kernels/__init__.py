"""The Triton kernels, installed as ``pinmem.kernels``.

A file with the name of an op is where it begins; those with longer names are its other passes, and
the rest is what several ops share.
"""
