"""A learning-rate schedule: the inverse square root of the steps since the warm-up."""

from seven_exp.training.lr_schedules import LR_SCHEDULES


@LR_SCHEDULES.register("own_inverse_sqrt")
def own_inverse_sqrt(step: int, steps: int, warmup: int, *, timescale: int = 100) -> float:
    """A pure function of the step; ``timescale`` is a key of ``optimizer.lr_options``."""
    return float((1 + (step - warmup) / timescale) ** -0.5)
