"""``seven-exp tune``: the arguments of ``seven-exp train`` for equal tuning of several methods."""

from collections.abc import Sequence

HELP = """usage: seven-exp tune pruner=NAME,NAME... [KEY=VALUE...] [tune.KEY=VALUE...]

Searches each method's own hyper-parameters, with the same number of trials for each, on the
validation split, and writes the values to a file for tuned=FILE. The same command continues.

  seed=0,1 sparsity=0.9   a trial is the mean over all of them
  KEY=interval(a,b)       searched for every method, too
  tune.trials=20          trials of each method, the first with its defaults
  tune.output=FILE        where the values go (tuned.yaml in the sweep's folder)
  tune.jobs=1             trials at a time, for hydra/launcher=joblib and others

All other keys are those of seven-exp train, for example:

  seven-exp tune experiment=leaderboard pruner=seven_dyn,platon sparsity=0.9 seed=0,1"""


def for_train(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``seven-exp train`` that do the tuning."""
    # The trials' table would compare them by the test split.
    fixed = ["-m", "hydra/sweeper=tune", "~hydra.callbacks.compare"]
    own = (
        f"hydra.sweeper.{a.removeprefix('tune.')}" if a.startswith("tune.") else a
        for a in arguments
    )
    return [*fixed, *own]
