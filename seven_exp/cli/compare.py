"""``seven-exp compare FOLDER...``: print a table; write comparison.csv, .png, .html, ..."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from seven_exp.cli.arguments import Parser
from seven_exp.compare.comparison import DEFAULT_BASELINE, DEFAULT_PORT, compare, serve
from seven_exp.compare.contrasts import split
from seven_exp.compare.files import FORMATS, PICTURES, Output, parse_formats
from seven_exp.compare.inference import Inference
from seven_exp.compare.look import Look, check_fonts, check_styles, parse_names, parse_width
from seven_exp.compare.statistics import paired_difference, unpaired_difference

_OF_FIGURES = ("x", "y", "colour", "width", "style", "highlight")
"""Options that change nothing but figures."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for a mistake, named in one line on stderr."""
    parser = Parser(
        prog="seven-exp compare",
        description="Compare the runs recorded below some folders.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--metric", help="a final metric (the task's headline)")
    parser.add_argument(
        "--baseline", help=f"method to subtract ({DEFAULT_BASELINE}, if it took part)"
    )
    parser.add_argument(
        "--unpaired",
        action="store_const",
        const=unpaired_difference,
        default=paired_difference,
        help="compare means by Welch's t test, for runs on different seeds",
    )
    parser.add_argument(
        "--contrast",
        action="append",
        default=[],
        metavar="METHOD:METHOD",
        help="a planned comparison, repeatable (those that the runs' configs state)",
    )
    parser.add_argument(
        "--margin",
        type=float,
        metavar="POINTS",
        help="also test whether the two are equivalent within this difference",
    )
    parser.add_argument(
        "--family",
        choices=("sparsity", "table"),
        default="sparsity",
        help="whose p values Holm's correction covers together (sparsity)",
    )
    parser.add_argument(
        "--effects",
        default="",
        metavar="KEY,KEY,...",
        help="main effects and interactions of settings that a sweep has crossed: pruner, or keys "
        "such as trainer.max_steps",
    )
    parser.add_argument(
        "--published", action="store_true", help="also print the published figures of SEVEN"
    )
    parser.add_argument("--output", type=Path, help="folder of the files (the first FOLDER)")
    parser.add_argument(
        "--format",
        default=",".join(Output.formats),
        metavar="FORMAT,...",
        help=f"files to write, of {', '.join(FORMATS)} (%(default)s)",
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="NAME=NICE",
        help="print a method, setting, model, data set or metric as NICE in figures, tex and md",
    )
    parser.add_argument(
        "--highlight",
        action="append",
        default=[],
        metavar="PATTERN",
        help="methods to draw in colour, such as 'seven_*'; the others become grey",
    )
    parser.add_argument(
        "--x",
        default=Look.x,
        metavar="NAME",
        help="what the figure's curves run over: sparsity, kept, zeros, flops, seconds, a metric, "
        "latency.VARIANT or a numeric setting that differs (%(default)s)",
    )
    parser.add_argument("--y", metavar="NAME", help="what they show, of the same (the metric)")
    parser.add_argument("--colour", metavar="NAME", help="colour the means by it, of the same")
    parser.add_argument("--width", help="width of the figures in a paper: 3.25in, 8.5cm, 246pt")
    parser.add_argument(
        "--style",
        action="append",
        default=[],
        metavar="NAME",
        help="a style sheet of matplotlib, or a file .mplstyle, for the figures; repeatable",
    )
    parser.add_argument(
        "--serve", action="store_true", help="serve the page to a browser, updated at each reload"
    )
    parser.add_argument("--port", type=int, help=f"for --serve ({DEFAULT_PORT}; 0: any free port)")
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT", help="also create or update a W&B report and workspace"
    )
    options = parser.parse_args(arguments)
    try:
        if options.port is not None and not options.serve:
            raise ValueError("--port works only with --serve")
        if options.margin is not None and not 0 < options.margin < math.inf:
            raise ValueError(f"--margin is {options.margin}: choose a number above 0")
        formats = parse_formats(options.format)
        of_figures = [
            f"--{key}" for key in _OF_FIGURES if getattr(options, key) != parser.get_default(key)
        ]
        pictures = {*PICTURES} & {*formats}
        if of_figures and not pictures:
            raise ValueError(f"{of_figures[0]} is for figures: add png, svg or pdf to --format")
        inference = Inference(
            *(options.unpaired, options.family, split(options.contrast), options.margin),
            factors=tuple(filter(None, map(str.strip, options.effects.split(",")))),
        )
        if options.serve:
            for key in ("output", "format", "rename", *_OF_FIGURES, "published", "wandb"):
                if getattr(options, key) != parser.get_default(key):
                    raise ValueError(f"--{key} is for files and the terminal: leave out --serve")
            serve(options.folders, options.metric, options.baseline, options.port, inference)
            return 0
        width = None if options.width is None else parse_width(options.width)
        check_styles(options.style)
        axes = options.x, options.y, options.colour
        look = Look(parse_names(options.rename), options.highlight, width, options.style, *axes)
        if pictures:
            check_fonts(look)
        compare(
            options.folders,
            options.metric,
            options.baseline,
            Output(options.output, formats, look),
            published=options.published,
            wandb=options.wandb,
            inference=inference,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ConnectionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
