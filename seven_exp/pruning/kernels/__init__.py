"""Kernels in C and Triton; each has a PyTorch version that gives the same bits."""
