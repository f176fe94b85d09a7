"""Compose a run from ``conf/`` and the command line, check it, run it.

python train.py pruner=seven_dyn sparsity=0.7
"""

import gc
import sys
from pathlib import Path

if __name__ == "__main__":
    gc.disable()  # the imports would be collected many times; `main` enables it
    try:
        # Imported here: the import takes long enough to be interrupted.
        from seven_exp.cli.train import main

        main(Path(__file__).resolve().parent / "conf")
    except KeyboardInterrupt:
        sys.exit("error: interrupted")
