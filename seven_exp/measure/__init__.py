"""Measures what pruning gains on this machine, in time, memory and bytes, next to theory."""
