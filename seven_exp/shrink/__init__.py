"""Shrinks models: removes units with constant or unused output; the outputs stay the same."""

from seven_exp.shrink.attention import SlimAttention
from seven_exp.shrink.coupling import coupled_pattern
from seven_exp.shrink.depth import keep_blocks
from seven_exp.shrink.shrinking import Shrunk, shrink
from seven_exp.shrink.sizes import fit

__all__ = ["Shrunk", "SlimAttention", "coupled_pattern", "fit", "keep_blocks", "shrink"]
