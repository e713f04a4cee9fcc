"""`bilevel-rl report FOLDER ...`: run folders to one HTML page, or to figures for a paper."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bilevel_rl.launch import options

arg = tyro.conf.arg


@dataclasses.dataclass(frozen=True)
class Settings:
    """One self-contained HTML page (or figures) from every run folder at or below the folders given."""

    folders: Annotated[
        tyro.conf.Positional[tuple[Path, ...]], arg(help="run folders, or folders of run folders")
    ]
    out: Annotated[Path | None, arg(help="the HTML file; by default report.html in the first folder")] = None
    title: Annotated[str, arg(help="headline; by default the problems' names")] = ""
    figures: Annotated[
        Literal["pdf", "png", "svg"] | None,
        arg(help="also write each figure as a file, through Kaleido and Chromium"),
    ] = None


def main(argv: Sequence[str]) -> int:
    """Write the report and print where it is; return 1 when a folder was left out, with its reason as a warning."""
    given = options.parse("report", Settings, argv)
    folders = given.folders or (Path("runs"),)
    from bilevel_rl import report
    from bilevel_rl.report import collect

    found = collect.read(folders)
    page = report.page.build_found(found, given.out or folders[0] / "report.html", title=given.title)
    for sentence in [*found.trouble, *(text for s in found.sections for m in s.methods for text in m.damage)]:
        print(f"warning: {sentence}", file=sys.stderr)
    print(f"report: {page}")
    if given.figures is not None:
        for file in report.export(folders, page.parent / "figures", given.figures):
            print(f"figure: {file}")
    return int(bool(found.trouble))
