"""``seven-exp COMMAND ...``: training, comparison, export and measurement from one command."""

import gc
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from seven_exp.messages import nearest

TOOLS = ("compare", "export", "measure", "plan", "reproduce", "sync", "upload")
"""Each is a module of this package whose ``main`` returns the exit code."""

HELP = """usage: seven-exp COMMAND ...

  train      train, prune and record a run, or with -m a sweep
  prune      prune a language model after training, measure and save it
  plan       how much memory a run will take, and whether it fits
  compare    tables, statistics and charts from the records of runs
  export     export a finished run's model for other programs
  measure    measure size, memory and speed of a pruned and the dense model
  reproduce  a finished run's command, and whether it gives the same figures today
  tune       tune each method's hyper-parameters with equal effort
  sync       upload what W&B has logged offline
  upload     log finished runs with a tracker that they ran without

seven-exp COMMAND --help explains a command, for example:

  seven-exp train pruner=seven_dyn sparsity=0.7
  seven-exp train -m pruner=seven_pre,seven_dyn,magnitude sparsity=0.5,0.7,0.9 seed=0,1,2
  seven-exp prune model=opt pruner=wanda sparsity=0.5
  seven-exp compare outputs"""

USUAL = (
    *("trainer.max_steps=0", "trainer.batch_size=1", "model=hf", "dataset=lm/wikitext2"),
    *("pruner=wanda", "calibration=c4"),
)
"""What ``prune`` sets, unless its arguments do."""


def conf_dir() -> Path:
    """Location of conf/: in an installed package, or in a checkout."""
    package = Path(__file__).parent.parent
    return next(p for p in (package / "conf", package.parent / "conf") if p.is_dir())


def after_training(arguments: Sequence[str]) -> list[str]:
    """The arguments of ``train`` that do what ``prune`` does with these."""
    given = {argument.partition("=")[0] for argument in arguments}
    return [*(usual for usual in USUAL if usual.partition("=")[0] not in given), *arguments]


def main() -> int:
    """Run a command with the arguments that follow it; returns its exit code.

    ``seven-exp train`` accepts the arguments of ``train.py``, including ``--config-dir`` for the
    user's own configs.
    """
    commands = ("train", "prune", "tune", *TOOLS)
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(HELP)
        return 0
    if name not in commands:
        print(f"error: unknown command '{name}': {nearest(name, commands)}", file=sys.stderr)
        return 2
    if name in TOOLS:
        return int(import_module(f"seven_exp.cli.{name}").main(arguments))
    if name == "tune":
        from seven_exp.cli.tune import HELP as TUNE_HELP
        from seven_exp.cli.tune import for_train

        if {"-h", "--help"} & set(arguments):
            print(TUNE_HELP)
            return 0
        arguments = for_train(arguments)
    if name == "prune":
        arguments = after_training(arguments)
    sys.argv = [sys.argv[0], *arguments]
    gc.disable()  # the imports would be collected many times; train's `main` enables it
    try:
        # Imported here: the import takes long enough to be interrupted.
        from seven_exp.cli.train import main as train

        train(conf_dir())
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    return 0
