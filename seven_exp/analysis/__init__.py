"""Why masks come to be: what the gradients of kept and pruned weights are like, and who survives.

Tensors in, numbers out; `Probe` ties these to a run. Nothing here knows the criterion, so that all
are judged by one ruler.
"""

from seven_exp.analysis.probe import Probe

__all__ = ["Probe"]
