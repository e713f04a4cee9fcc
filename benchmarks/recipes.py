"""Every component of a recipe in the trainer, at equal tokens and at equal gradient steps, with TRL's GRPO beside them.

    python benchmarks/recipes.py [--quick] [--families text_world,named,...] [--trl sort,text_world] [--variants A,B]
        [--seeds 10] [--tokens N] [--out FILE] [--cells FOLDER] [--assess] [--list]

A run takes seconds: one Torch thread, language models of 2 layers and width 48, made on the spot and cached. Families are
the shipped small tasks (`bilevel_rl.llm.tasks.by_name`), each with a policy warmed up by imitation, and happy tweets:

* `sort`: sort four letters; `arithmetic`: sums and differences of digits. Score: share of right held-out answers.
* `text_world`: shortest paths on a map of 9 places, moves and answers interleaved, 2 to 6 turns. Score: mean reward of
  held-out pairs of places.
* `running_sums`: sums by steps, with solutions and answers that can be asked for; `prisoners`: two rows play each other.
* `tweets`: the happy-tweets model and classifier, the gold score as reward, tau = .05. Score: gold on held-out prompts.
* `named`: every named recipe runs end to end on a task that feeds it, once, at one rate: that it runs, not how well.
* `--trl`: whole recipes beside GRPO of TRL 1.16 on a family: the same start, prompts, seeds and settings to choose from. In
  the text world TRL gets rows from our generator (its `rollout_func`), with the world's words masked out.

Every run is scored when its tokens are spent, and when its gradient steps are done; greedy rows, probes and rows that go on
from prefixes count as tokens. Every variant chooses its learning rate from the same four on three seeds that do not count;
where the best is the smallest or largest of them, another is tried beyond it, and if the best stays at the edge the choice
is refused and nothing is claimed of the variant. Intervals are Student's t over seeds; their coverage, and that of the
percentile and studentised bootstraps, is simulated at the number of seeds and written down. Claims are of paired t-tests
after Holm's correction, over the variants of a family, and beside TRL over all recipes and families; a claim holds at equal
tokens and at equal gradient steps. `--assess` computes intervals and claims again from the scores on record; `--list` says
what the whole study is and costs. Every finished run is a file in the folder of cells: kill it at any moment and start it
again, nothing finished is lost. What is not asked for stays in the file as it was. Writes benchmarks/results/recipes.json.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from _recipes_choosing import TUNING, Cells, assess, measure
from _recipes_families import Family, families, run, run_trl, small
from _recipes_variants import CHOICES, ELSEWHERE, HOME, NOT_RUN, RATES, SECONDS, TABLES, WHOLE
from transformers.utils import logging as transformers_logging

from bilevel_rl import __version__, records
from bilevel_rl.policy_gradient.recipes import ALL

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log meanwhile; what the process had before comes back, for whoever calls `main`."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@quiet()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look: 1/16 of the tokens, 2 seeds, one rate, rough coverage")
    parser.add_argument("--families", default=",".join([*TABLES, "named"]), help="components of these; named; empty: none")
    parser.add_argument("--trl", default=",".join(WHOLE), help="whole recipes beside TRL's GRPO on these; empty: none")
    parser.add_argument("--variants", default="", help="only these, by label")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--assess", action="store_true", help="no runs: intervals and claims from the scores on record")
    parser.add_argument("--list", action="store_true", help="no runs: what the study is, and what it costs")
    parser.add_argument("--tokens", type=int, default=0, help="of every run of the families asked for; 0: their own")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--cells", type=Path, default=Path("runs/bench-recipes"))
    args = parser.parse_args(argv)
    out = args.out or (args.cells / "quick.json" if args.quick else ROOT / "benchmarks/results/recipes.json")
    if args.list:
        print(cost(args.seeds))
        return
    results: dict[str, Any] = records.read_json(out) if out.exists() else {"families": {}, "beside_trl": {}}
    if not args.assess:
        torch.set_num_threads(1)
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        results |= {
            "task": __doc__.split("\n")[0], "quick": args.quick, "versions": versions(), "hardware": records.hardware(),
        }  # fmt: skip
        study(args, results, out)
    results["not_run"] = NOT_RUN
    assess(results, 20 if args.quick else 400)
    records.write_json(out, results)
    print(f"written: {out}")


def study(args: argparse.Namespace, results: dict[str, Any], out: Path) -> None:
    """The runs that are asked for, into `results`, which is written after every variant."""
    seeds, only = (2 if args.quick else args.seeds), set(filter(None, args.variants.split(",")))
    every, cells, share = families(args.cells), Cells(args.cells), 16 if args.quick else 1
    asked, beside = (list(filter(None, text.split(","))) for text in (args.families, args.trl))
    for name in asked:
        if name == "named":
            results["named"] = named_recipes(args.cells, cells, only, 16 if args.quick else 1)
            continue
        family = every[name]
        tokens, steps = (args.tokens or family.tokens) // share, max(family.steps // share, 1)
        place = results["families"].setdefault(name, {"variants": {}})
        place |= about(family, tokens, steps, seeds)
        for label, variant in family.variants.items():
            if only and label not in only:
                continue
            rates = variant[2].get("rates", family.rates)
            place["variants"][label] = {"slot": variant[0], "recipe": variant[1]} | measure(
                cells, name, label, rates[:1] if args.quick else rates, functools.partial(run, family, variant), seeds,
                tokens, steps,
            )  # fmt: skip
            show(name, label, place["variants"][label])
            records.write_json(out, results)
    for name in beside:
        family, choices = every[name], CHOICES[name][:1] if args.quick else CHOICES[name]
        tokens, steps = (args.tokens or family.tokens) // share, max(family.steps // share, 1)
        place = results["beside_trl"].setdefault(name, {"recipes": {}})
        place |= about(family, tokens, steps, seeds) | {"choices": CHOICES[name]}

        def trl(choice: Any, *more: Any, family: Family = family) -> dict[str, Any]:
            return run_trl(family, choice[0], choice[1], *more)

        place["trl"] = measure(cells, f"trl-{name}", "grpo", choices, trl, seeds, tokens, steps)
        show(f"trl {name}", "grpo", place["trl"])
        for label, recipe in WHOLE[name].items():
            if only and label not in only:
                continue

            def ours(choice: Any, *more: Any, recipe: str = recipe, family: Family = family) -> dict[str, Any]:
                return run(family, ("recipe", recipe, {"epochs": choice[0]}), choice[1], *more)

            row = measure(cells, f"recipe-{name}", label, choices, ours, seeds, tokens, steps)
            place["recipes"][label] = {"recipe": recipe} | row
            show(f"beside {name}", label, row)
            records.write_json(out, results)


def about(family: Family, tokens: int, steps: int, seeds: int) -> dict[str, Any]:
    """What a family's figures are of."""
    return {
        "tokens": tokens, "steps": steps, "seeds": seeds, "prompts": family.prompts, "group": family.group,
        "tau": family.tau, "rates": list(family.rates),
    }  # fmt: skip


def named_recipes(folder: Path, cells: Cells, only: set[str], share: int) -> dict[str, Any]:
    """Every named recipe, once: the score before and after 3,000 tokens at a learning rate of .001."""
    found = {}
    for recipe in ALL:
        if recipe.name in ELSEWHERE or (only and recipe.name not in only):
            continue
        home = HOME.get(recipe.name, "text_world")
        family = small(folder, home, 3_000, 1)
        options = {"terms": True} if home == "sort" else {}
        one = cells.get(
            ("named", recipe.name, 1e-3, 0, 3_000 // share, 1),
            lambda f=family, r=recipe, o=options: run(f, ("recipe", r.name, o), 1e-3, 0, 3_000 // share, 1),
        )
        found[recipe.name] = {"task": home} | {key: one[key] for key in ("before", "score", "tokens", "gradient_steps")}
        print(f"named   {recipe.name:22s} {home:14s} {one['before']:.3f} -> {one['score']:.3f}", flush=True)
    return found


def cost(seeds: int) -> str:
    """The runs of the whole study and their processor time, at the seconds a run took on 2 EPYC cores (docs/log.md)."""
    lines, total = [], 0.0
    runs = len(RATES) * len(TUNING) + seeds
    for name, table in TABLES.items():
        lines.append((name, len(table) * runs, SECONDS[name]))
    for name in WHOLE:
        more = len(CHOICES[name]) * len(TUNING) + seeds
        lines.append((f"{name} beside TRL", (len(WHOLE[name]) + 1) * more, SECONDS[name]))
    lines.append(("named", len(ALL) - len(ELSEWHERE), 4.0))
    words = []
    for name, number, seconds in lines:
        total += number * seconds
        words.append(f"{name:22s} {number:5d} runs of about {seconds:4.1f} s  {number * seconds / 3600:5.2f} CPU-hours")
    return "\n".join([*words, f"{'together':22s} {total / 3600:.1f} CPU-hours; choices at an edge add up to two rates each"])


def show(name: str, label: str, row: Mapping[str, Any]) -> None:
    print(f"{name:12s} {label:22s} {row['before']:.3f} -> {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  "
          f"chosen {row['chosen']}{' refused' if row['refused'] else ''}  {row['seconds']:.1f} s", flush=True)  # fmt: skip


def versions() -> dict[str, str]:
    others = {name: metadata.version(name) for name in ("torch", "transformers", "trl")}
    return {"bilevel_rl": __version__, **others}


if __name__ == "__main__":
    main()
