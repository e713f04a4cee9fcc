"""Speed of the policy-gradient components: against loops over samples, beside a training iteration, against fused code.

    python benchmarks/policy_gradient.py [--tokens 1000000] [--out benchmarks/results/policy_gradient.json]

Three questions, one thread, processor time of this process:

1. `components`: milliseconds on 10^6 tokens in groups of 8, and how many times longer a Python loop over samples takes.
   The loop of a component that compares nothing wider than a group calls it on one response (or group) at a time, on a
   sample of units, scaled up. Those that compare the whole batch have a loop written out below;
   selections copy the fields that a loss needs, their loops row by row.
2. `share`: milliseconds at 256 x 64 tokens as a share of one learning pass (forward, log-probabilities, backward, Adam)
   of a small transformer on the same tokens. Sampling, left out, would make every share smaller.
3. `recipe`: the same learning pass with GRPO from the recipe and with GRPO written by hand in one function.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.checks import random_batch, scope_of, with_memory
from bilevel_rl.policy_gradient.component import Scope, Slot
from bilevel_rl.policy_gradient.logs import log_ratio
from bilevel_rl.policy_gradient.recipes import COMPONENTS, named
from bilevel_rl.records import hardware

GROUP, WIDTH = 8, 64


# -- loops over samples for the components that compare the whole batch --------------------------------------------------


def rows_of(b: Batch, *names: str) -> list[tuple[Tensor, ...]]:
    """The fields of each response at its action tokens."""
    return [tuple(b.get(n)[i][b.mask[i]] for n in names) for i in range(len(b))]


def loop_batch_norm(b: Batch) -> list[Tensor]:
    returns = []
    for i in range(len(b)):
        r = b.reward[i, b.mask[i]].sum(-1)
        returns.append(r.flip(0).cumsum(0).flip(0))
    total = sum(float(x.sum()) for x in returns)
    count = sum(len(x) for x in returns)
    mean = total / count
    spread = math.sqrt(sum(float((x - mean).square().sum()) for x in returns) / count)
    return [(x - mean) / (spread + 1e-8) for x in returns]


def loop_group_norm(b: Batch) -> list[float]:
    groups: dict[int, list[float]] = {}
    scores = [float(b.reward[i, b.mask[i]].sum()) for i in range(len(b))]
    for q, s in zip(b.group.tolist(), scores, strict=True):
        groups.setdefault(q, []).append(s)
    return [
        (s - statistics.fmean(groups[q])) / (statistics.stdev(groups[q]) + 1e-4)
        for q, s in zip(b.group.tolist(), scores, strict=True)
    ]


def loop_empg(b: Batch) -> list[Tensor]:
    advantage = loop_group_norm(b)
    steps = []
    for i, (entropy, turn) in enumerate(rows_of(b, "entropy", "turn")):
        for u in turn.unique():
            steps.append((i, int(u), float(entropy[turn == u].mean())))
    low, high = min(s[2] for s in steps), max(s[2] for s in steps)
    gain = {(i, u): math.exp(-(h - low) / (high - low)) for i, u, h in steps}
    mean = sum(gain.values()) / len(gain)
    out, total = [], 0.0
    for i, (turn,) in enumerate(rows_of(b, "turn")):
        values = torch.zeros(len(turn))
        for u in turn.unique().tolist():
            bonus = [gain[i, v] for v in range(u + 1, u + 4) if (i, v) in gain][:1]
            value = advantage[i] * gain[i, u] / mean + 0.1 * (bonus[0] if bonus else 0.0)
            values[turn == u] = value
            total += value
        out.append(values)
    return [x - total / len(steps) for x in out]


def loop_copo(b: Batch) -> list[float]:
    local = loop_group_norm(b)
    scores = [float(b.reward[i, b.mask[i]].sum()) for i in range(len(b))]
    members: dict[int, list[int]] = {}
    for i, q in enumerate(b.group.tolist()):
        members.setdefault(q, []).append(i)
    means = {q: statistics.fmean(scores[i] for i in rows) for q, rows in members.items()}
    centre, spread = statistics.fmean(means.values()), statistics.pstdev(means.values())
    out = [0.0] * len(b)
    for q, rows in members.items():
        counts = Counter(int(b.get("answer")[i]) for i in rows)
        entropy = -sum(c / len(rows) * math.log(c / len(rows)) for c in counts.values())
        w = 1 / (1 + math.exp(-20 * (entropy - 1.5)))
        for i in rows:
            out[i] = w * local[i] + (1 - w) * (means[q] - centre) / (spread + 1e-4)
    return out


def loop_duration(b: Batch) -> list[Tensor]:
    mean = statistics.fmean(float(d) for d in b.get("duration"))
    return [b.mask[i] * float(b.get("duration")[i]) / mean for i in range(len(b))]


def loop_covariance(b: Batch) -> list[Tensor]:
    rows = rows_of(b, "advantage", "logp")
    n = sum(len(a) for a, _ in rows)
    mean_a = sum(float(a.sum()) for a, _ in rows) / n
    mean_p = sum(float(p.sum()) for _, p in rows) / n
    cov = [(a - mean_a) * (p - mean_p) for a, p in rows]
    order = sorted(
        ((float(c), i, t) for i, row in enumerate(cov) for t, c in enumerate(row.tolist())), reverse=True
    )
    chosen: dict[int, list[int]] = {}
    for _, i, t in order[: max(int(2e-4 * n), 1)]:
        chosen.setdefault(i, []).append(t)
    out = [torch.ones(len(a)) for a, _ in rows]
    for i, positions in chosen.items():
        out[i][positions] = 0
    return out


def loop_d3s_tokens(b: Batch) -> list[Tensor]:
    rows = rows_of(b, "advantage", "entropy")
    scores = [(a.abs() * h) for a, h in rows]
    flat = sorted((s for row in scores for s in row.tolist()), reverse=True)
    limit = flat[math.ceil(0.2 * len(flat)) - 1]
    return [(s >= limit).float() for s in scores]


def loop_safe(b: Batch) -> float:
    rows = rows_of(b, "kl", "entropy")
    n = sum(len(k) for k, _ in rows)
    kl = sum(float(k.sum()) for k, _ in rows) / n
    entropy = sum(float(h.sum()) for _, h in rows) / n
    return 0.1 * max(kl - 0.3, 0) ** 2 * max(0.5, 2 / (entropy + 0.1))


def loop_prompts(b: Batch) -> Batch:
    values: dict[int, list[float]] = {}
    for q, v in zip(b.group.tolist(), b.get("prompt_value").tolist(), strict=True):
        values.setdefault(q, []).append(v)
    kept = set(
        sorted(values, key=lambda q: abs(statistics.fmean(values[q]) - 0.5))[
            : max(round(0.25 * len(values)), 1)
        ]
    )
    return Batch.cat([b.rows(torch.tensor([i])) for i in range(len(b)) if int(b.group[i]) in kept])


def loop_budget(b: Batch) -> Batch:
    values: dict[int, list[float]] = {}
    for q, v in zip(b.group.tolist(), b.get("prompt_value").tolist(), strict=True):
        values.setdefault(q, []).append(v)
    p = {q: statistics.fmean(v) for q, v in values.items()}

    def utility(n: int, rate: float) -> float:
        return n * (1 - rate) * (1 - (1 - rate) ** (n - 1))

    budget = dict.fromkeys(p, 2)
    for _ in range(len(b) // 2 - 2 * len(p)):
        best = max(
            (q for q in p if budget[q] < GROUP),
            key=lambda q: utility(budget[q] + 1, p[q]) - utility(budget[q], p[q]),
        )
        budget[best] += 1
    kept, seen = [], Counter()
    for i, q in enumerate(b.group.tolist()):
        seen[q] += 1
        if seen[q] <= budget[q]:
            kept.append(i)
    return Batch.cat([b.rows(torch.tensor([i])) for i in kept])


LOOPS: dict[str, Callable[[Batch], Any]] = {
    "batch_norm": loop_batch_norm, "empg": loop_empg, "copo": loop_copo, "duration": loop_duration,
    "clip_cov": loop_covariance, "kl_cov": loop_covariance, "d3s_tokens": loop_d3s_tokens, "safe": loop_safe,
    "pcl": loop_prompts, "v0_budget": loop_budget,
}  # fmt: skip


# -- measurements ---------------------------------------------------------------------------------------------------------


def seconds(function: Callable[[], Any], repeats: int) -> float:
    """The shortest of some runs, after one to warm up; time of this process, so that others' don't count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def data(tokens: int) -> Batch:
    prompts = max(tokens // (WIDTH * GROUP), 1)
    batch = random_batch(seed=0, prompts=prompts, samples=GROUP, width=WIDTH, terms=1).to(dtype=torch.float32)
    mask = torch.ones_like(batch.mask)
    clean = batch.map(lambda x: torch.nan_to_num(x) if x.is_floating_point() else x)
    return clean.replace(mask=mask, length=mask.sum(1))


def lean(component: Any, batch: Batch) -> Batch:
    """For a selection, which copies rows: only its own fields and those that any loss needs."""
    if component.card.slot != Slot.SELECT:
        return batch
    keep = {
        "mask",
        "reward",
        "group",
        "trajectory",
        "length",
        "done",
        "truncated",
        "logp",
        "old",
        "advantage",
    }
    keep |= set(component.card.needs)
    drop = dict.fromkeys(
        ("ref", "entropy", "value", "kl", "weight", "turn", "state_key", "answer", "duration")
    )
    drop = {name: None for name in drop if name not in keep}
    return batch.replace(**drop, extras={k: v for k, v in batch.extras.items() if k in keep})


def call(component: Any, batch: Batch) -> None:
    """One use: a loss or regulariser with its backward pass."""
    if component.card.slot in (Slot.LOSS, Slot.REGULAR):
        leaves = {f: batch.get(f).detach().requires_grad_() for f in component.card.gradient}
        component(batch.replace(**leaves)).backward()
    else:
        with torch.no_grad():
            component(batch)


def loop_seconds(component: Any, batch: Batch, units: int = 48) -> tuple[float, str]:
    """Seconds of a loop over samples on the whole batch, and how it was found."""
    scope = scope_of(component)
    name = component.card.name
    if name in LOOPS:
        part = batch.rows(torch.arange(min(len(batch), 800)))
        return seconds(lambda: LOOPS[name](part), 1) * len(batch) / len(part), "written out"
    size = GROUP if scope is not Scope.RESPONSE else 1
    number = len(batch) // size
    picked = [batch.rows(torch.arange(k * size, (k + 1) * size)) for k in range(min(units, number))]
    time_ = seconds(lambda: [call(component, part) for part in picked], 2)
    return time_ * number / len(picked), f"one {scope} at a time"


def measure_components(tokens: int) -> list[dict[str, Any]]:
    batch, small = data(tokens), data(256 * 64)
    table = []
    for cls in COMPONENTS:
        if cls.card.slot == Slot.STEP:  # type: ignore[attr-defined]
            continue
        component = cls()
        ready, little = (with_memory(component, lean(component, b)) for b in (batch, small))
        fast = seconds(lambda c=component, b=ready: call(c, b), 2)
        brief = seconds(lambda c=component, b=little: call(c, b), 5)
        slow, how = loop_seconds(component, ready)
        table.append(
            {"component": component.card.name, "slot": str(component.card.slot), "ms": 1e3 * fast,
             "loop_ms": 1e3 * slow, "times_faster": slow / fast, "loop": how, "ms_256x64": 1e3 * brief}
        )  # fmt: skip
        print(f"{component.card.name:22s} {1e3 * fast:9.1f} ms  loop {1e3 * slow:10.0f} ms  x {slow / fast:8.1f}"
              f"   256x64: {1e3 * brief:7.2f} ms", flush=True)  # fmt: skip
    return table


class SmallTransformer(nn.Module):
    """Two layers, width 128, vocabulary 4,096: what a language-model test trains."""

    def __init__(self, vocabulary: int = 4096, width: int = 128, layers: int = 2, longest: int = 96) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, width), nn.Embedding(longest, width)
        block = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        t = tokens.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(t)
        return self.head(
            self.blocks(self.embed(tokens) + self.place(torch.arange(t)), mask=causal, is_causal=True)
        )


def learning_pass(
    model: nn.Module, optimiser: Any, tokens: Tensor, loss_of: Callable[[Tensor], Tensor]
) -> None:
    """Forward, log-probabilities, loss, backward, step; in four parts to bound the memory of the logits."""
    optimiser.zero_grad(set_to_none=True)
    logp = []
    for part in tokens.split(256):
        logp.append(model(part[:, :-1]).log_softmax(-1).gather(-1, part[:, 1:, None])[..., 0])
    loss_of(torch.cat(logp)).backward()
    optimiser.step()


def fused_grpo(reward: Tensor, group: Tensor, mask: Tensor, logp: Tensor, old: Tensor) -> Tensor:
    """GRPO by hand, for groups of `GROUP` consecutive responses: nothing is checked, nothing is general."""
    score = (reward * mask).sum(1).view(-1, GROUP)
    a = ((score - score.mean(1, keepdim=True)) / (score.std(1, keepdim=True) + 1e-4)).view(-1, 1)
    ratio = (logp - old).exp()
    loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
    return ((loss * mask).sum(1) / mask.sum(1)).mean()


def measure_recipe(repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = SmallTransformer()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    tokens = torch.randint(4096, (256, 65))
    batch = data(256 * 64)
    recipe = named("grpo")
    raw = batch.replace(advantage=None, weight=None)
    mask, reward = batch.mask.float(), batch.token_reward

    def with_recipe(logp: Tensor) -> Tensor:
        seen = raw.replace(old=logp.detach())
        return recipe.objective(recipe.prepare(seen).replace(logp=logp))[0]

    def by_hand(logp: Tensor) -> Tensor:
        return fused_grpo(reward, batch.group, mask, logp, logp.detach())

    x = torch.randn(256, 64)
    one = with_recipe(x.clone().requires_grad_())
    two = by_hand(x.clone().requires_grad_())
    assert abs(one.item() - two.item()) < 1e-5, (one.item(), two.item())
    assert log_ratio(x, x).abs().max() == 0
    times: dict[str, list[float]] = {"recipe": [], "by_hand": []}
    alone: dict[str, list[float]] = {"recipe": [], "by_hand": []}
    for _ in range(repeats):  # in turns, so that a busy machine hurts both alike
        for name, loss_of in (("recipe", with_recipe), ("by_hand", by_hand)):
            start = time.process_time()
            learning_pass(model, optimiser, tokens, loss_of)
            times[name].append(time.process_time() - start)
            leaf = torch.randn(256, 64).requires_grad_()
            start = time.process_time()
            loss_of(leaf).backward()
            alone[name].append(time.process_time() - start)
    best = {name: min(values) for name, values in times.items()}
    own = {name: min(values) for name, values in alone.items()}
    return {
        "learning_pass_ms": 1e3 * best["by_hand"],
        "learning_pass_with_recipe_ms": 1e3 * best["recipe"],
        "recipe_alone_ms": 1e3 * own["recipe"],
        "fused_alone_ms": 1e3 * own["by_hand"],
        "overhead": (own["recipe"] - own["by_hand"]) / best["by_hand"],
        "overhead_of_whole_passes": best["recipe"] / best["by_hand"] - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/policy_gradient.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = measure_recipe(args.repeats)
    print(json.dumps(recipe, indent=2), flush=True)
    table = measure_components(args.tokens)
    for line in table:
        line["share_of_learning_pass"] = line["ms_256x64"] / recipe["learning_pass_ms"]
    result = {
        "tokens": args.tokens, "group": GROUP, "width": WIDTH, "recipe": recipe, "components": table,
        "slowest_share": max(line["share_of_learning_pass"] for line in table),
        "least_times_faster": min(line["times_faster"] for line in table),
        "hardware": hardware(),
    }  # fmt: skip
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"slowest share {result['slowest_share']:.2%}, least times faster {result['least_times_faster']:.1f}"
    )


if __name__ == "__main__":
    main()
