"""The page of the paper's claims, one by one: figures brought up to date, verdicts by its rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from result_pages.paper import (
    aids_table,
    broken_conditions,
    closer_table,
    curvature,
    differences,
    edges_table,
    forms_table,
    gridworld_claims,
    leaving_table,
    limits_tables,
    longer_table,
    population_line,
    subsidy_table,
    targets_table,
)
from result_pages.tweets import claim_rows
from result_pages.words import table


def verdicts(root: Path) -> str:
    """One row a claim: where it was read, the test, the figure, the verdict by the rule of the page."""
    folder = root / "benchmarks/results"
    grid, claims = (json.loads((folder / f"{name}.json").read_text()) for name in ("gridworld", "gridworld_claims"))
    rows = []

    def versus(of: str, rivals: list[str], part: str) -> tuple[int, int, int]:
        some = [d for d in grid["parts"][part]["differences"] if d["of"] == of and d["less"] in rivals]
        return sum(d["high"] < 0 for d in some), sum(d["low"] > 0 for d in some), len(some)

    def judged(of: str, rivals: list[str]) -> tuple[str, str]:
        found = {part: versus(of, rivals, part) for part in grid["parts"]}
        words = "; ".join(
            f"goal as a {p}: ahead at {a} of {n} budgets, behind at {b}" for p, (a, b, n) in found.items() if n
        )
        ahead, behind = (sum(v[i] for v in found.values()) for i in (0, 1))
        verdict = "mixed" if ahead and behind else "contradicted here" if behind else "consistent" if ahead else "undecided"
        return words, verdict

    for name, rivals in (
        ("partial SGD", ["partial_sgd"]),
        ("finite differences", ["finite_difference", "finite_difference, independent numbers"]),
        ("the nested loop", ["nested_penalty, as published"]),
    ):
        for of in (
            "as published", "as published, one chain", "as published, conditions kept", "+ common random numbers",
            "+ steady followers and w", "+ its exponents", "constant entropy",
        ):  # fmt: skip
            figure, verdict = judged(of, rivals)
            if not figure:
                continue
            who = (
                f"the paper's algorithm, {of}" if of.startswith("as published")
                else "its constant-entropy variant, common numbers, our aids" if of == "constant entropy" else f"{of} (ours)"
            )  # fmt: skip
            rows.append([f"faster and better than {name}", "summary", f"{who}, equal search", figure, verdict])
    for of in ("as published", "+ hold, momentum, averaging", "+ steady followers and w", "+ its exponents"):
        ends = {part: ends_against(facts["differences"], of, "constant entropy") for part, facts in grid["parts"].items()}
        known = {part: d for part, d in ends.items() if d is not None}
        if known:
            better, worse = sum(d["high"] < 0 for d in known.values()), sum(d["low"] > 0 for d in known.values())
            rows.append([
                "the variant with constant regularisation ends in a suboptimal solution", "summary",
                f"{of} less constant entropy (with common numbers and our aids), equal search, at the last budget",
                "; ".join(f"goal as a {part}: {d['difference']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
                          for part, d in known.items()),
                "mixed" if better and worse else "contradicted here" if worse else "consistent" if better else "undecided",
            ])  # fmt: skip
    for label, r in claims["rate"].items():
        rows.append([
            f"samples to a stationary point, {label}: slope at most {r['claimed at most']:.2f}", "summary (rates)",
            "mean square gradient over samples, 10 states", f"{r['slope']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
            r["verdict"],
        ])  # fmt: skip
    slopes = [s for s, _, _ in claims["bias"]["slopes"]]
    rows.append([
        "the penalty's gradient is off by O(w)", "summary", "exact oracles, slope against w",
        f"{min(slopes):.2f} to {max(slopes):.2f}", "consistent" if min(slopes) > 0.9 else "contradicted",
    ])  # fmt: skip
    found = claims["dominance"]
    words = "; ".join(f"*{n}*: least {d['least']:.1e}, slope {d['slope']:.2f} [{d['low']:.2f}, {d['high']:.2f}]"
                      for n, d in found.items())  # fmt: skip
    limits = "; ".join(f"{curvature(values)} at tau = {tau}" for tau, values in claims["curvature"].items())
    rows.append([
        "a Polyak-Lojasiewicz type condition of the lower level", "abstract",
        "squared policy gradient over suboptimality along runs, and its slope against the gap; curvature at the optimum",
        f"{words}; limit at the optimum at worst {limits}",
        "consistent" if all(d["low"] <= 0 for d in found.values())
        else "consistent, with a constant that shrinks as the gap closes",
    ])  # fmt: skip
    for name, words in (("gridworld_temperature", "30 seeds"), ("gridworld_temperature_longer", "10 seeds")):
        rows.append(fading_row(folder / f"{name}.json", words))
    rows += claim_rows(json.loads((folder / "paper_tweets.json").read_text()))
    return table({"heads": ["Claim", "Read in", "Test", "Figure", "Verdict"], "rows": rows})


def fading_row(file: Path, seeds: str) -> list[str]:
    """The row of fading against constant temperatures, to the budget at which a file's runs end."""
    paired = json.loads(file.read_text())
    fading = [x for x in paired["differences"] if x["of"].startswith("fading")]
    figure = "; ".join(
        f"from {x['of'].split()[-1]}: {x['difference']:+.4f} [{x['low']:+.4f}, {x['high']:+.4f}]" for x in fading
    )
    better, worse = sum(x["high"] < 0 for x in fading), sum(x["low"] > 0 for x in fading)
    end = next(iter(paired["rows"].values()))["budgets"][-1] / 1e6
    return [
        "fading regularisation reaches the unregularised problem, constant regularisation ends elsewhere",
        "abstract; summary",
        f"fading less constant from the same temperature, all else the same, on the subsidy, {seeds} to {end:g} million",
        figure,
        "mixed" if worse and better else "contradicted here" if worse else "consistent" if better else "undecided",
    ]  # fmt: skip


def ends_against(differences: list[dict[str, Any]], of: str, less: str) -> dict[str, Any] | None:
    """The comparison of two rows at the last budget that both have."""
    some = [d for d in differences if (d["of"], d["less"]) == (of, less)]
    return some[-1] if some else None


# name between its marks -> (file of results, its writer)
BLOCKS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "broken": ("gridworld", broken_conditions), "differences": ("gridworld", differences),
    "aids": ("gridworld_aids", aids_table), "forms": ("gridworld_forms", forms_table),
    "leaving": ("gridworld_leaving", leaving_table), "limits": ("gridworld_limits", limits_tables),
    "closer": ("gridworld_closer", closer_table), "longer": ("gridworld_longer", longer_table),
    "subsidy": ("gridworld_temperature", subsidy_table), "later": ("gridworld_temperature_longer", subsidy_table),
    "searched": ("gridworld", subsidy_table), "edges": ("gridworld_edges", edges_table),
    "claims": ("gridworld_claims", gridworld_claims), "population": ("gridworld_population", population_line),
}  # fmt: skip


def claims(root: Path) -> str:
    """The page of the paper's claims, its figures brought up to date; a table whose file is not there yet stays as it is."""
    page, folder = (root / "docs/claims.md").read_text(), root / "benchmarks/results"
    files = {stem: folder / f"{stem}.json" for stem, _ in BLOCKS.values()}
    facts = {stem: json.loads(file.read_text()) for stem, file in files.items() if file.exists()}
    blocks = {name: writer(facts[stem]) for name, (stem, writer) in BLOCKS.items() if stem in facts}
    blocks["verdicts"] = verdicts(root)
    blocks["targets"] = targets_table(*(facts[f"gridworld{name}"] for name in ("", "_closer", "_population")))
    for name, words in blocks.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        page = page[: page.index(start) + len(start)] + words.strip() + "\n" + page[page.index(end) :]
    return page
