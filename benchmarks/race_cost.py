"""What common random numbers cost: drawing one token a row by an exponential race, against two yardsticks.

    python benchmarks/race_cost.py                 writes benchmarks/results/race_cost.json (half a minute, one thread)

`race` is what `paired` draws with (`common_numbers: race`), `inverse` our inverse distribution function, `multinomial`
torch's. All three get logits and hand back tokens and their log-probabilities. `head` is the matrix product that makes the
logits of a model of width 768, for scale. CPU milliseconds a call of 64 rows: the machine may be shared.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch

from bilevel_rl.llm.sampling.sampler import inverse_cdf, race
from bilevel_rl.records import hardware

ROWS, WIDTH, REPEATS = 64, 768, 9
VOCABULARIES = (1_000, 10_000, 50_257, 100_000)


def multinomial(logits: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    law = logits.log_softmax(-1)
    token = torch.multinomial(law.exp(), 1)
    return token[:, 0], law.gather(-1, token)[:, 0]


def measured(vocabulary: int) -> dict[str, float]:
    """Median CPU milliseconds of each, taking turns."""
    torch.manual_seed(0)
    logits, u = 3 * torch.randn(ROWS, vocabulary), torch.rand(ROWS, dtype=torch.float64)
    hidden, head = torch.randn(ROWS, WIDTH), torch.randn(vocabulary, WIDTH)
    calls = {
        "race": lambda: race(logits, u), "inverse": lambda: inverse_cdf(logits, u),
        "multinomial": lambda: multinomial(logits, u), "head": lambda: hidden @ head.T,
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in calls}
    calls_each = max(1, 20_000 // vocabulary)
    for repeat in range(REPEATS + 1):  # the first warms up
        for name, call in calls.items():
            begin = time.process_time()
            for _ in range(calls_each):
                call()
            if repeat:
                times[name].append(1e3 * (time.process_time() - begin) / calls_each)
    found = {name: round(statistics.median(values), 3) for name, values in times.items()}
    return found | {
        "over_inverse": round(found["race"] / found["inverse"], 2),
        "over_multinomial": round(found["race"] / found["multinomial"], 2),
        "over_head": round(found["race"] / found["head"], 2),
    }


def main() -> None:
    """Measure and write."""
    torch.set_num_threads(1)
    rows = []
    for vocabulary in VOCABULARIES:
        rows.append({"vocabulary": vocabulary, **measured(vocabulary)})
        print(rows[-1], flush=True)
    names = ("race", "inverse", "multinomial", "head")
    written = {
        "heads": [f"Vocabulary; CPU milliseconds for {ROWS} tokens", "race", "inverse CDF", "torch.multinomial",
                  f"product with a head of width {WIDTH}"],
        "rows": [[f"{row['vocabulary']:,}", *(f"{row[name]:.3g}" for name in names)] for row in rows],
        "sampling": rows, "torch": torch.__version__, "hardware": hardware(),
    }  # fmt: skip
    path = Path(__file__).parent / "results/race_cost.json"
    path.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
