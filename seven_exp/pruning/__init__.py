"""The core: pruners for anybody's training loop. Tensors in, masks out; no files, no config."""

from seven_exp.pruning import criteria
from seven_exp.pruning.check import Check, LayerCheck
from seven_exp.pruning.criteria.base import Criterion
from seven_exp.pruning.evidence import NoEvidenceError
from seven_exp.pruning.keywords import read_by
from seven_exp.pruning.layers import Coverage, prunable_layers, survey
from seven_exp.pruning.masks import pack_bits, unpack_bits
from seven_exp.pruning.memory import MemoryPlan, plan_memory
from seven_exp.pruning.pruner import Pruner, build_criterion, check_sparsity, create_pruner
from seven_exp.pruning.registry import PRUNERS, PrunerSpec, register
from seven_exp.pruning.schedules import SCHEDULES, Schedule

__all__ = [
    "PRUNERS",
    "SCHEDULES",
    "Check",
    "Coverage",
    "Criterion",
    "LayerCheck",
    "MemoryPlan",
    "NoEvidenceError",
    "Pruner",
    "PrunerSpec",
    "Schedule",
    "build_criterion",
    "check_sparsity",
    "create_pruner",
    "criteria",
    "pack_bits",
    "plan_memory",
    "prunable_layers",
    "read_by",
    "register",
    "survey",
    "unpack_bits",
]
