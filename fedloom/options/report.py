"""The options of the page that shows runs; see `fedloom.options.fed`."""

from dataclasses import dataclass

from fedloom.options.declare import option


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Report."""

    runs: tuple[str, ...] = option(
        (),
        "folders of runs, <out_dir>/<exp_name>, or a folder that holds some; may stand first, without --runs",
        path=True,
    )
    output: str = option("report.html", "page to write; -o is short for it", path=True)
