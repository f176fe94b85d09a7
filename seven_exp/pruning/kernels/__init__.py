"""Passes over memory in C and Triton, each with a statement in PyTorch that gives the same bits."""
