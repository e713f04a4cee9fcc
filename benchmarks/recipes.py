"""Every component of a recipe in the trainer, at equal tokens and on ten seeds, with TRL's GRPO beside them.

    python benchmarks/recipes.py [--quick] [--families sort,grid,tweets,trl] [--seeds 10] [--tokens N] [--out FILE]
        [--cells FOLDER] [--assess]

A run takes seconds: one Torch thread, language models of 2 layers and width 48, made on the spot and cached. Families:

* `sort`: sort four letters (`sort:dbca=` -> `abcd`), exact reward, problems held out by a hash; a GPT-2 of characters is
  warmed up on answers until it is right about a quarter of the time. Score: share of right held-out answers.
* `grid`: four text-grid games with a key and a door, the moves of an episode as one completion, cut where it ends; states
  come back by replaying the moves. Score: share of 256 fresh episodes that reach the door.
* `tweets`: the happy-tweets model and classifier, the gold score as reward, tau = .05. Score: gold on held-out prompts.
* `trl`: GRPO of TRL 1.16 on `sort`, and whole recipes beside it: the same start, prompts, tokens and seeds, and the same
  settings to choose from for each (1 or 2 gradient steps a batch, times the learning rates).

Within a family all runs stop at the same number of generated tokens (greedy baselines count). A variant that takes two
gradient steps a batch is also shown at equal gradient steps, with half the tokens. Every variant chooses its learning rate
from the same four on three seeds that do not count; where the best is the smallest or largest of them, another is tried
beyond it, and if the best stays at the edge the choice is refused and nothing is claimed of the variant. Intervals are
Student's t over seeds; their coverage, and that of the percentile and studentised bootstraps, is simulated at the number of
seeds on the scores' own kind of law and written down. Claims are of paired t-tests after Holm's correction over the
variants of a family. `--assess` computes intervals and claims again from the scores on record, without a run. Every
finished run is a file in the folder of cells: kill it at any moment and start it again, nothing finished is lost. Writes
benchmarks/results/recipes.json.
"""
from __future__ import annotations

import argparse
import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from _recipes_choosing import Cells, assess, measure
from _recipes_families import families, run, run_trl
from _recipes_variants import NOT_RUN, RATES, WHOLE
from transformers.utils import logging as transformers_logging

from bilevel_rl import __version__, records

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
    parser.add_argument("--families", default="sort,grid,tweets,trl")
    parser.add_argument("--variants", default="", help="only these, by label")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--assess", action="store_true", help="no runs: intervals and claims from the scores on record")
    parser.add_argument("--tokens", type=int, default=0, help="of every run of the families asked for; 0: their own")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--cells", type=Path, default=Path("runs/bench-recipes"))
    args = parser.parse_args(argv)
    if args.assess:
        out = args.out or ROOT / "benchmarks/results/recipes.json"
        results = records.read_json(out)
        assess(results)
        records.write_json(out, results)
        print(f"written: {out}")
        return
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    seeds, only = (2 if args.quick else args.seeds), set(filter(None, args.variants.split(",")))
    every, cells, asked = families(args.cells), Cells(args.cells), args.families.split(",")
    share = 16 if args.quick else 1
    results: dict[str, Any] = {
        "task": __doc__.split("\n")[0], "seeds": seeds, "quick": args.quick, "families": {}, "not_run": NOT_RUN,
        "versions": versions(), "hardware": records.hardware(),
    }  # fmt: skip
    out = args.out or (args.cells / "quick.json" if args.quick else ROOT / "benchmarks/results/recipes.json")
    if out.exists():  # what is not asked for stays
        old = records.read_json(out)
        results["families"] = {name: rows for name, rows in old["families"].items() if name not in asked}
        results |= {key: old[key] for key in ("trl", "recipes") if key in old and "trl" not in asked}
    for name in [f for f in every if f in asked]:
        family, tokens, rows = every[name], (args.tokens or every[name].tokens) // share, {}
        results["families"][name] = {
            "tokens": tokens, "prompts": family.prompts, "group": family.group, "tau": family.tau,
            "rates": list(family.rates), "variants": rows,
        }  # fmt: skip
        for label, variant in family.variants.items():
            if only and label not in only:
                continue
            rates = variant[2].get("rates", family.rates)
            rows[label] = {"slot": variant[0], "recipe": variant[1]} | measure(
                cells, name, label, rates[:1] if args.quick else rates,
                lambda rate, seed, spend, v=variant, f=family: run(f, v, rate, seed, spend), seeds, tokens,
            )  # fmt: skip
            show(name, label, rows[label])
    if "trl" in asked:
        family, tokens = every["sort"], (args.tokens or every["sort"].tokens) // share
        choices = [[steps, rate] for steps in (1, 2) for rate in RATES]
        results["trl"] = measure(
            cells, "trl", "grpo", choices[:1] if args.quick else choices,
            lambda c, seed, spend: run_trl(family, c[0], c[1], seed, spend), seeds, tokens,
        )  # fmt: skip
        show("trl", "grpo", results["trl"])
        results["recipes"] = {}
        for label, recipe in WHOLE.items():
            if only and label not in only:
                continue
            results["recipes"][label] = {"recipe": recipe} | measure(
                cells, "recipe", label, choices[:1] if args.quick else choices,
                lambda c, seed, spend, r=recipe: run(family, ("recipe", r, {"epochs": c[0]}), c[1], seed, spend), seeds,
                tokens,
            )  # fmt: skip
            show("recipe", label, results["recipes"][label])
    assess(results, 20 if args.quick else 400)
    records.write_json(out, results)
    print(f"written: {out}")


def show(name: str, label: str, row: Mapping[str, Any]) -> None:
    print(f"{name:7s} {label:22s} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  chosen {row['chosen']}  "
          f"{row['tokens']} tokens  {row['seconds']:.1f} s", flush=True)  # fmt: skip


def versions() -> dict[str, str]:
    others = {name: metadata.version(name) for name in ("torch", "transformers", "trl")}
    return {"bilevel_rl": __version__, **others}


if __name__ == "__main__":
    main()
