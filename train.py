"""Compose a run from ``conf/`` and the command line, check it, run it.

python train.py pruner=seven_dyn sparsity=0.7
"""

from pathlib import Path

from seven_exp.command import main

if __name__ == "__main__":
    main(Path(__file__).resolve().parent / "conf")
