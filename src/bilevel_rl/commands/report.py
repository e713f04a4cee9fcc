"""`bilevel-rl report FOLDER ...`: run folders to one HTML page, or to figures for a paper."""

from __future__ import annotations

import dataclasses
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
    """Write the report and print where it is."""
    given = options.parse("report", Settings, argv)
    folders = given.folders or (Path("runs"),)
    from bilevel_rl import report

    page = report.build(folders, given.out or folders[0] / "report.html", title=given.title)
    print(f"report: {page}")
    if given.figures is not None:
        for file in report.export(folders, page.parent / "figures", given.figures):
            print(f"figure: {file}")
    return 0
