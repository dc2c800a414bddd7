"""`fedloom report`: one self-contained page that shows runs and compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.filesize import decimal

from fedloom.errors import UserError, plain_console
from fedloom.report.groups import group_runs
from fedloom.report.page import page
from fedloom.runs.files import check_output, write_atomically
from fedloom.runs.record import read_runs


def run_report(*, runs: Sequence[str], output: str) -> None:
    """Write the page.

    Args:
        runs: Folders of runs, finished or not.
        output: The page to write.

    Raises:
        UserError: A folder is no run, plotly is missing, or the page cannot be written there.
    """
    path = Path(output)
    check_output(path, "report.html")
    if not path.parent.is_dir():
        raise UserError(f"output: there is no folder {path.parent}; make it, or choose another place")
    script = plotly_script()
    groups = group_runs(read_runs(runs))
    # It tells what the model answered to whose questions, and who holds how much.
    write_atomically(path, page(groups, script), private=True, then="start again, or choose another place")
    console = plain_console()
    summary = f"Page: {path} ({decimal(path.stat().st_size)})"
    console.print(summary, soft_wrap=True)


def plotly_script() -> str:
    """Plotly's JavaScript, which the page brings along.

    Raises:
        UserError: Plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise UserError("report: plotly is missing; pip install 'fedloom[report]'") from None
    return str(get_plotlyjs())
