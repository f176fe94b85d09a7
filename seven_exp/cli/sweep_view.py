"""Leaves a view of a finished sweep on W&B."""

import shlex
import sys
from pathlib import Path

from seven_exp.config import Tracker


def leave_view(folder: Path, config: Tracker) -> None:
    """Create or update the view of a sweep, or say in one line why that is not possible.

    Args:
        folder: Of the sweep; it holds a finished run.
        config: Section ``tracker`` of its runs.
    """
    from seven_exp.tracking import logged_in, mode_of, place_of, sweep_name

    mode = mode_of(config)
    if mode == "disabled" or not config.view:
        return
    if mode == "offline" or not logged_in():
        what = f"wandb login && seven-exp sync {shlex.quote(str(folder))}"
        print(f"W&B is offline; to upload the sweep and its view: {what}")
        return
    from seven_exp.compare.comparison import read
    from seven_exp.compare.dashboard import build_dashboard, publish_views, require_login

    try:
        require_login()
        place = place_of(config.entity, config.project)
        found = read([folder], None, None)
        board = build_dashboard(
            found.rows, found.metric, found.baseline, *place, sweep_name(folder)
        )
        print(f"view on W&B: {', '.join(publish_views(board))}")
    except (ValueError, ConnectionError) as error:
        print(f"no view on W&B: {str(error).removeprefix('W&B: ')}", file=sys.stderr)
