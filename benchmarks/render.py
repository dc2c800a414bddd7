"""From a result of `round.py` to Markdown, and into the pages that show it.

A page says ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->``; what stands between is made of
``benchmarks/results/NAME.json``, so no number in it was typed by hand. ``headline`` takes its few numbers
from several results:

    python benchmarks/render.py README.md          # fill the page's tables again
    python benchmarks/render.py --check README.md  # exit status 1 where the page says something else
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from headline import headline
from tables import as_markdown

RESULTS = Path(__file__).parent / "results"
_SECTION = re.compile(r"(<!-- benchmark:([\w.-]+) -->\n).*?(<!-- /benchmark -->)", re.DOTALL)


def fill(page: str, results: Path) -> str:
    """The page with all its tables made anew.

    Raises:
        FileNotFoundError: the page names a result that is not there.
    """

    def section(match: re.Match[str]) -> str:
        if match[2] == "headline":
            return match[1] + headline(results) + match[3]
        result = json.loads((results / f"{match[2]}.json").read_text(encoding="utf-8"))
        return match[1] + as_markdown(result) + match[3]

    return _SECTION.sub(section, page)


def main(arguments: list[str] | None = None) -> int:
    """Fill or check pages. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Fill the benchmark tables of Markdown pages.")
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; fail where a page is not up to date"
    )
    options = parser.parse_args(arguments)
    stale = []
    for page in options.pages:
        before = page.read_text(encoding="utf-8")
        after = fill(before, options.results)
        if options.check and after != before:
            stale.append(str(page))
        elif after != before:
            page.write_text(after, encoding="utf-8")
    if stale:
        print(f"not what {options.results} says: {', '.join(stale)}", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
