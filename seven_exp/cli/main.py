"""``seven-exp COMMAND ...``: training, comparison, export and measurement from one command."""

import sys
from importlib import import_module
from pathlib import Path

from seven_exp.registry import nearest

TOOLS = ("compare", "export", "measure")
"""Each is a module beside this one whose ``main`` returns the exit code."""

PACKAGE = Path(__file__).parent.parent
PLACES = (PACKAGE / "conf", PACKAGE.parent / "conf")
"""Where conf/ is: in an installed package, or in a checkout."""


def main() -> int:
    """Run a command with the arguments behind it; returns its exit code.

    ``seven-exp train`` takes what ``train.py`` takes, ``--config-dir`` for a config of one's own
    among it.
    """
    commands = ("train", *TOOLS)
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: seven-exp {{{','.join(commands)}}} ...; seven-exp COMMAND --help says more")
        return 0
    if name not in commands:
        print(f"error: unknown command '{name}': {nearest(name, commands)}", file=sys.stderr)
        return 2
    if name in TOOLS:
        return int(import_module(f"seven_exp.cli.{name}").main(arguments))
    sys.argv = [sys.argv[0], *arguments]
    try:
        # Imported here: it takes long enough to be interrupted.
        from seven_exp.cli.train import main as train

        train(next(place for place in PLACES if place.is_dir()))
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
    return 0
