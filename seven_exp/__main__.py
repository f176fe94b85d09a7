"""``python -m seven_exp``: the command ``seven-exp``."""

import sys

from seven_exp.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
