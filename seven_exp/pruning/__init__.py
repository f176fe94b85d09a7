"""The core: pruners for any training loop. Tensors in, masks out; no files, no config."""

from seven_exp.pruning import criteria
from seven_exp.pruning.check import Check, LayerCheck
from seven_exp.pruning.create import create_pruner
from seven_exp.pruning.criteria.score import Elementwise, GradientScore, ModelScore, Score, State
from seven_exp.pruning.criteria.solver import Budget, GradientSolver, RegionalSolver, Solver
from seven_exp.pruning.evidence import NoEvidenceError
from seven_exp.pruning.keywords import read_by
from seven_exp.pruning.layers import Coverage, prunable_layers, survey
from seven_exp.pruning.masks import pack_bits, unpack_bits
from seven_exp.pruning.memory import MemoryPlan, WalkPlan, plan_memory, plan_walk
from seven_exp.pruning.method import Ranking, needs_batches, prunes_by_block
from seven_exp.pruning.pruner import Pruner
from seven_exp.pruning.registry import PRUNERS, PrunerSpec, build_method, register
from seven_exp.pruning.regrowth import FromZero, Moved, Remembered, StayGone, StraightThrough
from seven_exp.pruning.rules import DropAndGrow, Moment, Rule, Threshold, TopK
from seven_exp.pruning.schedules import SCHEDULES, Gradual, Rounds

__all__ = [
    "PRUNERS",
    "SCHEDULES",
    "Budget",
    "Check",
    "Coverage",
    "DropAndGrow",
    "Elementwise",
    "FromZero",
    "GradientScore",
    "GradientSolver",
    "Gradual",
    "LayerCheck",
    "MemoryPlan",
    "ModelScore",
    "Moment",
    "Moved",
    "NoEvidenceError",
    "Pruner",
    "PrunerSpec",
    "Ranking",
    "RegionalSolver",
    "Remembered",
    "Rounds",
    "Rule",
    "Score",
    "Solver",
    "State",
    "StayGone",
    "StraightThrough",
    "Threshold",
    "TopK",
    "WalkPlan",
    "build_method",
    "create_pruner",
    "criteria",
    "needs_batches",
    "pack_bits",
    "plan_memory",
    "plan_walk",
    "prunable_layers",
    "prunes_by_block",
    "read_by",
    "register",
    "survey",
    "unpack_bits",
]
