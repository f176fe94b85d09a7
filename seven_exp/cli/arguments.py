"""Command lines beside train.py's: a mistake costs one line and exit code 2."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """argparse's, without the usage before each error."""

    def error(self, message: str) -> NoReturn:
        """Say it in one line and exit with 2."""
        self.exit(2, f"error: {message}\n")
