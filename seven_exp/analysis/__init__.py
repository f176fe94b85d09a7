"""Analysis of masks: the gradients of kept and pruned weights, and which weights stay kept.

Tensors in, numbers out; `Probe` applies this to a run. It does not depend on the criterion, so all
criteria are measured in the same way.
"""

from seven_exp.analysis.probe import Probe

__all__ = ["Probe"]
