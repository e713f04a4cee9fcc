"""docs/results/*.md from benchmarks/results/*.json. Run it after a benchmark: `python docs/hooks/results.py`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

if str(Path(__file__).parent) not in sys.path:  # MkDocs and the tests load this file by its path
    sys.path.insert(0, str(Path(__file__).parent))

from result_pages.basins import basins, found_of_suite
from result_pages.claims import claims
from result_pages.competitors import exact_search, peers, published
from result_pages.control import control_known
from result_pages.control import found as found_of_control
from result_pages.flows import flows
from result_pages.gallery import gallery
from result_pages.inserted import inserted
from result_pages.language_models import happy_tweets, online_or_bilevel
from result_pages.methods import braess, choose, population, quality, reliability, suite
from result_pages.offline import offline
from result_pages.paper import (
    aids_table,
    closer_table,
    edges_table,
    first_search_table,
    forms_table,
    gridworld,
    gridworld_claims,
    gridworld_optima,
    gridworld_search,
    leaving_table,
    limits_tables,
    longer_table,
    population_line,
    readme,
    subsidy_table,
)
from result_pages.recipes import recipes
from result_pages.restricted import fresh_or_tuning, world
from result_pages.speed import many_processes, moving, scaling, states
from result_pages.tweets import paper_tweets
from result_pages.words import aged, machine, noted, plain, table

HEAD = """Written by `docs/hooks/results.py` from `benchmarks/results/*.json` whenever the site is built. Each file there
holds the full record: grids, choices, every seed. How to make them again: [Reproduce](../reproduce.md).
"""


class Topic(NamedTuple):
    """A page of results: the files whose names begin with one of `files`, the longest beginning deciding.

    Attributes:
        found: facts by file -> what was found, first on the page; None where tables speak for themselves.
    """

    page: str
    title: str
    files: tuple[str, ...]
    about: str
    found: Callable[[dict[str, dict[str, Any]]], str] | None = None


TOPICS = (
    Topic("paper", "The paper's GridWorld", ("gridworld",), "the paper's first experiment: searches, budgets, both grades, "
          "why the optimum is left, fading against constant temperature"),
    Topic("happy-tweets", "Happy tweets and language models", ("happy_tweets", "online_or_bilevel", "llm_estimators", "llm",
          "paper_tweets", "restricted", "risk"),
          "the paper's second experiment, the estimators, where bi-level learning can win"),
    Topic("methods", "Every method on every problem", ("suite", "basins"),
          "all solvers on all tasks at equal samples, tuned alike; where ours is behind, and why", found_of_suite),
    Topic("defaults", "Defaults on random instances", ("population", "quality", "search", "reliability", "braess"),
          "what a newcomer gets without tuning; what kills, corruptions and bad inputs do"),
    Topic("competitors", "Published figures, reached and passed",
          ("published", "peers", "exact_search", "four_rooms_samples"),
          "the competing methods at their own budgets, best known values"),
    Topic("control", "Neural followers", ("control", "flows"), "followers with networks in environments; flows",
          found_of_control),
    Topic("offline", "Learners from stored data", ("offline",), "eleven learners under one protocol, two levels on data"),
    Topic("policy-gradient", "Policy-gradient catalogue", ("policy_gradient", "recipes"),
          "components and recipes beside GRPO of TRL"),
    Topic("speed", "Speed and scaling", ("speed", "scaling", "moving", "counted_memory", "llm_speed", "peers_speed",
          "race_cost", "paired_speed", "states", "many_processes"),
          "cost and memory along states, dimensions, runs, tokens and processes"),
    Topic("more", "More", ("",), "whatever has no topic yet"),
)  # fmt: skip


def on_pre_build(config, **_) -> None:
    """MkDocs calls this before a build: the pages are always what the files say."""
    write(Path(config.docs_dir).parent)


def write(root: Path) -> None:
    """Write the pages that changed."""
    for name, words in pages(root).items():
        path = root / "docs/results" / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != words:
            path.write_text(words)


def pages(root: Path) -> dict[str, str]:
    """Every page of results by its file name, the list of them included."""
    files: dict[Topic, list[Path]] = {topic: [] for topic in TOPICS}
    for file in sorted((root / "benchmarks/results").glob("*.json")):
        files[topic_of(file.stem)].append(file)
    found = {topic: some for topic, some in files.items() if some}
    rows = "\n".join(f"| [{topic.title}]({topic.page}.md) | {topic.about} |" for topic in found)
    made = {"index.md": f"# Results\n\n{HEAD}\n| Page | What was measured |\n|---|---|\n{rows}\n"}
    for topic, some in found.items():
        made[f"{topic.page}.md"] = page(topic, some)
    return made


def topic_of(stem: str) -> Topic:
    """The page of a file."""
    fits = [(len(start), -i, topic) for i, topic in enumerate(TOPICS) for start in topic.files if stem.startswith(start)]
    return max(fits, key=lambda fit: fit[:2])[2]


def page(topic: Topic, files: list[Path]) -> str:
    """A topic: a section a file."""
    parts, read = [f"# {topic.title}\n\n{HEAD}"], {file.stem: json.loads(file.read_text()) for file in files}
    if topic.found:
        parts.append(topic.found(read))
    for file in files:
        facts = read[file.stem]
        parts.append(f"## {file.stem.replace('_', ' ').capitalize()}\n\n{machine(facts)}\n{aged(facts)}")
        parts.append(WRITERS.get(file.stem, plain)(facts))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def by_its_page(facts: dict[str, Any]) -> str:
    """The words for a file whose figures a page of the guide explains."""
    return "Figures, and what was not measured: [on a GPU](../llm/gpu.md)."


WRITERS = {
    "suite": suite, "basins": basins,
    "exact_search": exact_search,
    "published": published,
    "peers": peers, "reliability": reliability,
    "scaling": scaling, "moving": moving, "braess": braess, "states": states, "many_processes": many_processes,
    "search": table, "four_rooms_samples": table, "counted_memory": table,
    "population": population, "quality": quality, "gridworld": gridworld, "gridworld_search": gridworld_search,
    "gridworld_optima": gridworld_optima,
    "gridworld_claims": gridworld_claims, "gridworld_leaving": leaving_table,
    "gridworld_limits": limits_tables, "gridworld_closer": closer_table, "gridworld_edges": edges_table,
    "gridworld_aids": aids_table, "gridworld_forms": forms_table, "gridworld_longer": longer_table,
    "gridworld_first_search": first_search_table,
    "gridworld_population": population_line, "gridworld_temperature": subsidy_table,
    "gridworld_temperature_longer": subsidy_table,
    "online_or_bilevel": online_or_bilevel, "happy_tweets": happy_tweets,
    "recipes": recipes, "control_known": control_known,
    "control_pendulum": noted, "control_incentives": noted, "control_imitation": noted, "control_host": noted,
    "control_systems": noted, "control_hopper": noted, "control_on_policy": noted, "offline": offline,
    "control_four_rooms": noted, "paired_speed": noted, "gpu": by_its_page,
    "restricted_policies": world, "restricted_happy_tweets": fresh_or_tuning,
    "flows": flows, "paper_tweets": paper_tweets, "race_cost": table, "gallery": gallery,
}  # fmt: skip

if __name__ == "__main__":
    here = Path(__file__).parents[2]
    write(here)
    (here / "README.md").write_text(readme(here))
    (here / "docs/how-to-choose.md").write_text(choose(here))
    (here / "docs/claims.md").write_text(claims(here))
    for page_of_guide, words_of_it in inserted(here).items():
        (here / page_of_guide).write_text(words_of_it)
