"""The page itself: sections, figures and scenes into one HTML file that needs no network."""

from __future__ import annotations

import base64
import datetime
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilevel_rl import __version__, records
from bilevel_rl.errors import MissingDependency, message, require
from bilevel_rl.report import collect, figures, policies, scenes, style, tables, texts

PLOTLY = "vendor/plotly-basic-4.1.1.min.js.gz"  # lines, points and bars: a quarter of the whole library


def build(paths: Sequence[str | Path], out: str | Path, title: str = "", note: str = "") -> Path:
    """Write the report of every run folder at or below `paths`.

    Args:
        out: the HTML file.
        title: headline; by default the problems' names.
        note: a sentence below it.

    Raises:
        RunNotFound: there is no run.
        MissingDependency: without the extra `report`.
        StorageFailed: the file can't be written.
    """
    return build_found(collect.read(paths), out, title, note)


def build_found(found: collect.Collected, out: str | Path, title: str = "", note: str = "") -> Path:
    """Write the report of what was read."""
    drawn = sum(bool(m.scene) for section in found.sections for m in section.methods)
    numbers = scenes.NUMBERS // max(1, drawn)
    sections = [_section(i, section, numbers) for i, section in enumerate(found.sections)]
    return render(sections, out, title or _title(found.sections), note, found.trouble)


def render(
    sections: Sequence[dict[str, Any]], out: str | Path, title: str, note: str = "", trouble: Sequence[str] = ()
) -> Path:
    """Write a page of sections that are ready to be drawn.

    Args:
        trouble: sentences above them, on what is left out.
    """
    jinja2 = require("jinja2", "report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bilevel_rl.report", ""),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = lambda value: _script_safe(jinja2, value)
    plain = jinja2.utils.markupsafe.Markup
    keys = ("id", "figures", "scenes")  # what scripts read; the rest of a section is in the page's text
    drawn = [{key: s[key] for key in keys} for s in sections]
    text = environment.get_template("page.html.jinja").render(
        title=title, note=note, sections=sections, trouble=list(trouble), drawn=drawn, css=plain(_file("page.css")),
        plotly=plain(plotly()),
        script=plain("\n".join(map(_file, ("gif.js", "pictures.js", "page.js")))),
        made=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M"), version=__version__,
    )  # fmt: skip
    out = Path(out)
    records.make_folder(out.parent)
    records.write_bytes(out, text.encode())
    return out


def _file(name: str) -> str:
    return importlib.resources.files("bilevel_rl.report").joinpath(name).read_text("utf-8")


def plotly() -> str:
    """Plotly's own script for lines, points and bars, compressed, in base 64; its licence lies beside it.

    The page unpacks it: half of its former size, and a third of what the script takes as text.
    """
    return base64.b64encode(importlib.resources.files("bilevel_rl.report").joinpath(PLOTLY).read_bytes()).decode()


def section_of(
    key: str, title: str, drawn: Sequence[style.Figure], provenance: dict[str, Any]
) -> dict[str, Any]:
    """A section of figures alone, without methods and table."""
    return {
        "id": key, "kind": "", "title": title, "options": "", "heads": [], "rows": [], "table_note": "", "summary": "",
        "methods": [], "figures": [_figure(key, f) for f in drawn], "scenes": {}, "policies": [], "samples": [],
        "together": None,
        "provenance": _facts(provenance) | {"Command": provenance.get("command", "")},
    }  # fmt: skip


def _figure(section: str, f: style.Figure) -> dict[str, Any]:
    plot: Any = f.plot
    return {
        "id": f"{section}-{f.key}", "title": f.title, "caption": f.caption, "log_x": f.log_x, "log_y": f.log_y,
        "switch": f.key not in ("sequences", "profile", "endings", "x", "rollout"), "plot": json.loads(plot.to_json()),
    }  # fmt: skip


def export(paths: Sequence[str | Path], folder: str | Path, kind: str) -> list[Path]:
    """Write every figure as `pdf`, `png` or `svg`, for a paper.

    Raises:
        MissingDependency: Kaleido needs a Chromium or Chrome, and finds none.
    """
    require("kaleido", "report")
    folder = records.make_folder(folder)
    plots, files = [], []
    for section in collect.sections(paths):
        for figure in figures.of(section):
            plot: Any = figure.plot
            plot.update_layout(showlegend=figure.key != "sequences", paper_bgcolor="white", plot_bgcolor="white",
                               legend={"orientation": "h", "y": -0.25}, font={"color": "black"})  # fmt: skip
            if figure.log_x:
                plot.update_xaxes(type="log")
            plots.append(plot)
            files.append(folder / f"{section.problem}-{figure.key}.{kind}")
    try:
        require("plotly.io", "report").write_images(
            plots, files, width=640, height=420, scale=2 if kind == "png" else 1
        )
    except Exception as error:  # Kaleido raises its own kinds, by the browser it finds or does not
        raise MissingDependency(
            message(f"report --figures {kind}", f"{type(error).__name__}: {str(error).splitlines()[0]}",
                    "figures are drawn by Chromium or Chrome", "Install it (apt-get install chromium), or use the page")
        ) from error  # fmt: skip
    return files


def _script_safe(jinja2, value: Any) -> Any:
    text = (
        json.dumps(value, separators=(",", ":"), allow_nan=False)
        .replace("</", "<\\/")
        .replace("<!--", "<\\!--")
    )
    return jinja2.utils.markupsafe.Markup(text)


def _title(found: list[collect.Section]) -> str:
    names = list(dict.fromkeys(section.title for section in found))
    return " · ".join(names[:3]).capitalize() + (" …" if len(names) > 3 else "")


def _section(index: int, section: collect.Section, numbers: int) -> dict[str, Any]:
    heads, rows, note = tables.results(section)
    colours = style.colours(section)
    drawn = figures.of(section)
    scene, acts, undrawn = {}, [], {}
    for m in section.methods:
        try:
            found, does = scenes.scene(m, numbers), policies.table(m)
        except (ValueError, IndexError, KeyError, TypeError) as error:  # arrays that do not belong together
            undrawn[m.label] = [f"{m.folders[0].name}: its scene can't be drawn ({type(error).__name__}: {error})."]
        else:
            if found is not None:
                scene[m.label] = found
            acts += [] if does is None else [does]
    return {
        "id": f"s{index}", "kind": section.kind, "title": section.title, "options": section.options,
        "heads": heads, "rows": [[cell.partition(" [") for cell in row] for row in rows], "table_note": note,
        "summary": _summary(section),
        "methods": [
            {"label": m.label, "colour": colours[m.label], "settings": m.settings, "command": m.command, "runs": m.count,
             "seed": m.runs[0].seed, "trouble": m.trouble + undrawn.get(m.label, [])}
            for m in section.methods
        ],
        "figures": [_figure(f"s{index}", f) for f in drawn],
        "scenes": scene, "policies": acts, "samples": texts.before_and_after(section), "together": texts.together(section),
        "provenance": _provenance(section),
    }  # fmt: skip


def _summary(section: collect.Section) -> str:
    """One true sentence about the section, from its numbers alone."""
    graded = [m for m in section.methods if m.best is not None and "gap" in m.trace and not m.model_based]
    if not graded:
        return ""
    if section.common is not None:
        least, most = (f(m.budget for m in graded) for f in (min, max))
        return (
            f"Budgets differ, from {least:,.0f} to {most:,.0f} samples a run: the methods are compared at "
            f"{section.common:,.0f}, the largest that all have."
        )
    hits = {m.label: int((m.trace["gap"][:, -1] <= collect.SUCCESS * abs(m.best or 0)).sum()) for m in graded}
    first = max(graded, key=lambda m: hits[m.label] / m.count)
    if not hits[first.label]:
        return "No method that samples ends within 5 % of the best known value at this budget."
    samples = first.trace["samples"][:, -1].mean()
    return (
        f"{first.label} ends within 5 % of the best known value in {hits[first.label]} of {first.count} runs "
        f"of {samples:,.0f} samples."
    )


def _provenance(section: collect.Section) -> dict[str, str]:
    return _facts(section.methods[0].runs[0].provenance)


def _facts(p: dict[str, Any]) -> dict[str, str]:
    hardware = p.get("hardware", {})
    machine = f"{hardware.get('cpu', 'unknown processor')}, {hardware.get('cores', '?')} cores"
    if hardware.get("memory_gib"):
        machine += f", {hardware['memory_gib']} GiB"
    if hardware.get("accelerator"):
        machine += f", {hardware['accelerator']}"
    return {
        "When": str(p.get("time", "")).replace("T", " "),
        "Machine": machine,
        "Versions": f"Python {p.get('python', '?')}, "
        + ", ".join(f"{k} {v}" for k, v in p.get("versions", {}).items()),
    }
