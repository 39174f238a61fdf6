"""The Triton kernels, installed as ``pinmem.kernels``: a folder per op, a file per pass.

What they share: how maps lie in memory and are loaded (``maps``), launches (``launch``) and sums
over all pixels (``partials``).
"""
