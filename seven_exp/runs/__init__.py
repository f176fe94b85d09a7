"""The life cycle of a run: check, train, record, find and restore."""

from seven_exp.runs.artifacts import MASKS, load_masks, save_masks, save_model
from seven_exp.runs.identity import run_hash

__all__ = ["MASKS", "load_masks", "run_hash", "save_masks", "save_model"]
