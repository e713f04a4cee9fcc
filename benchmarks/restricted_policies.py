r"""Bi-level RLHF against online RLHF where the policy can't be its reward's tilt: an enumerated world, finite labels.

N completions that can be written down with a gold score g. The reward $r_x = \phi x$ and the policy
$\pi_\theta \propto \mu e^{\psi\theta}$ are linear in features of their own, some of them shared: whatever x is, the policy
moves along psi alone, as an adapter of low rank or a head on a frozen trunk does. With $F = \mathrm{Cov}_\pi(\psi, \psi)$
the policy that is optimal for x at temperature tau obeys $\tau F\theta = \mathrm{Cov}_\pi(\psi, r_x)$; tau is the one at
which the KL to the reference is exactly the same for every method and at every iteration.

Labels are pairs drawn from the policy, decided by a Bradley-Terry law (slope 8) in g. Methods differ in how x moves:

    fixed       fits the labels, all on pairs of the reference
    online      fits the labels, drawn from the policy as it is now (all of them so far)
    tilted      online, and follows the win rate as if the policy were the tilt of its reward
    fisher      online, and follows the win rate through Cov(u, psi) F^-1 Cov(psi, grad r) / tau, where F and the cross
                covariance are the policy's own (they cost no labels) and u comes from all labels so far by importance
    hessian     the same with the follower's whole curvature tau F - R in the place of tau F (exact at its optimum)

`population` has a label for every pair; `bound` is the best policy of the class at that KL, whatever the reward.

    python benchmarks/restricted_policies.py                 writes benchmarks/results/restricted_policies.json
    python benchmarks/restricted_policies.py --seconds 90    stops after so many seconds of processor time; call it again
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from numpy.typing import NDArray

from bilevel_rl import statistics
from bilevel_rl.records import hardware, make_folder, read_json, write_json

Array = NDArray[np.float64]
SLOPE = 8.0
N, D, M = 100, 5, 5  # completions, reward features, policy features
T = 200  # iterations of every method
CLIP = 20.0  # bound on a pair's importance
METHODS = ("fixed", "online", "tilted", "fisher", "hessian")
WIDE = 15  # features of a reward model that is larger than the policy
ZETAS, WEIGHTS = (0.02, 0.05, 0.15), (1.0, 10.0)
FOLDER, LIMIT = Path("runs/restricted_policies"), [float("inf")]
TUNING, FRESH = range(3), range(100, 120)


@dataclasses.dataclass(frozen=True)
class World:
    """I instances at once: reference law [I, N], gold [I, N], reward features [I, N, D], policy features [I, N, M]."""

    law: Array
    gold: Array
    phi: Array
    psi: Array
    seeds: tuple[int, ...]


def world(shared: float, seeds: range, d: int = D, cover: float = 0.5) -> World:
    """Gold is a squashed linear function of both kinds of features and of what neither sees.

    Args:
        shared: share of the policy's features that are the reward's.
        d: features of the reward.
        cover: share of the gold score's variance, within the features, that the reward's features carry.
    """
    parts = []
    for seed in seeds:
        random = np.random.default_rng([seed, 7])
        law = random.dirichlet(np.full(N, 0.5)) + 1e-12
        phi, own = random.normal(size=(N, d)), random.normal(size=(N, M))
        same = round(shared * M)
        psi = np.concatenate([phi[:, :same], own[:, same:]], 1)
        a, b, rest = random.normal(size=d), random.normal(size=M), random.normal(size=N)
        seen = np.sqrt(cover) * phi @ a / np.sqrt(d) + np.sqrt(1 - cover) * psi @ b / np.sqrt(M)
        parts.append((law / law.sum(), scipy.special.expit(2 * (seen + 0.7 * rest)), phi, psi))
    return World(*(np.stack(p) for p in zip(*parts, strict=True)), tuple(seeds))


def cov(p: Array, a: Array, b: Array) -> Array:
    """[I, A, B] covariance of [I, N, A] and [I, N, B] under [I, N]."""
    centred = a - (p[..., None] * a).sum(1, keepdims=True)
    return np.einsum("in,ina,inb->iab", p, centred, b)


def at_kl(w: World, direction: Array, kl: float) -> tuple[Array, Array, Array]:
    """Scale s [I] > 0, law [I, N] and theta = s direction [I, M] at which the KL is `kl`, by bisection."""
    score = np.einsum("inm,im->in", w.psi, direction)
    low, high = np.full(len(score), -9.0), np.full(len(score), 9.0)
    for _ in range(26):
        middle = (low + high) / 2
        p = scipy.special.softmax(np.log(w.law) + np.exp(middle)[:, None] * score, -1)
        above = scipy.special.rel_entr(p, w.law).sum(-1) > kl
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    s = np.exp(low)
    p = scipy.special.softmax(np.log(w.law) + s[:, None] * score, -1)
    return s, p, s[:, None] * direction


def respond(w: World, x: Array, theta: Array, kl: float, steps: int) -> tuple[Array, Array, Array]:
    """The follower: fixed-point steps of tau F theta = Cov(psi, r) at that KL; returns (1/tau, law, theta)."""
    r = np.einsum("ind,id->in", w.phi, x)
    s, p, theta = at_kl(w, theta, kl)
    for _ in range(steps):
        fisher = cov(p, w.psi, w.psi) + 1e-6 * np.eye(M)
        goal = np.linalg.solve(fisher, cov(p, w.psi, r[..., None]))[..., 0]
        s, _, aim = at_kl(w, goal, kl)
        _, p, theta = at_kl(w, 0.5 * theta + 0.5 * aim, kl)
    return s, p, theta


def push(w: World, p: Array, theta: Array, s: Array, u: Array, weight: Array, kind: str, r: Array | None = None) -> Array:
    """[I, D] ascent direction of E[u] in x through the policy at fixed KL; u [I, N] with weights [I, N] of a mean."""
    utility = weight * (u - (weight * u).sum(-1, keepdims=True))
    if kind == "tilted":
        return s[:, None] * np.einsum("in,ind->id", utility, w.phi)
    up = np.einsum("in,inm->im", utility, w.psi)
    fisher = cov(p, w.psi, w.psi) + 1e-3 * np.eye(M)
    slope = np.einsum("imn,in->im", fisher, theta)  # gradient of the KL
    if kind == "hessian":
        a = s[:, None] * r - np.einsum("inm,im->in", w.psi, theta)  # what the policy can't express of r / tau
        a = a - (p * a).sum(-1, keepdims=True)
        centred = w.psi - (p[..., None] * w.psi).sum(1, keepdims=True)
        fisher = fisher - np.einsum("in,ina,inb->iab", p * a, centred, centred)
    z = np.linalg.solve(fisher, np.stack([up, slope], -1))  # of the gain, and of the KL that is to stay
    z = z[..., 0] - z[..., 1] * ((slope * z[..., 0]).sum(-1) / (slope * z[..., 1]).sum(-1))[:, None]
    return s[:, None] * np.einsum("im,imd->id", z, cov(p, w.psi, w.phi))


def solve(w: World, method: str, labels: int, kl: float, zeta: float, weight: float) -> Array:
    """[I] gold score of the last policy."""
    instances = len(w.law)
    random = [np.random.default_rng([seed, labels, METHODS.index(method)]) for seed in w.seeds]
    x = np.full((instances, w.phi.shape[-1]), 1e-3)
    first, second = np.zeros_like(x), np.zeros_like(x)
    theta = np.linalg.solve(cov(w.law, w.psi, w.psi) + 1e-6 * np.eye(M), cov(w.law, w.psi, w.phi @ x[..., None]))[..., 0]
    prefers = scipy.special.expit(SLOPE * (w.gold[:, :, None] - w.gold[:, None, :]))
    pool: list[tuple[Array, Array, Array]] = []  # rows [I] of winner and loser, and the law's probability of the two [I]
    asked = 0
    for k in range(T):
        s, p, theta = respond(w, x, theta, kl, 2)
        fresh = []
        while labels and asked < labels * (k + 1) / T:
            asked += 1
            q = w.law if method == "fixed" else p
            pair = np.stack([r.choice(N, 2, p=row / row.sum()) for r, row in zip(random, q, strict=True)])
            coin = np.array([r.random() for r in random])
            at = np.arange(instances)
            wins = coin < prefers[at, pair[:, 0], pair[:, 1]]
            chance = q[at, pair[:, 0]] * q[at, pair[:, 1]]
            fresh.append((np.where(wins, pair[:, 0], pair[:, 1]), np.where(wins, pair[:, 1], pair[:, 0]), chance))
        pool += fresh
        g = _fit(w, x, pool, prefers, w.law if method == "fixed" else p, labels)
        if method not in ("fixed", "online") and (pool or not labels):
            g = g - weight * _through(w, x, p, theta, s, method, pool, prefers)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
        step = first / (1 - 0.9 ** (k + 1)) / (np.sqrt(second / (1 - 0.999 ** (k + 1))) + 1e-8)
        x = x - zeta * min(1.0, 2 * (T - k) / T) * step
    p = respond(w, x, theta, kl, 20)[1]
    return (p * w.gold).sum(-1)


def _fit(w: World, x: Array, pool: list, prefers: Array, p: Array, labels: int) -> Array:
    """[I, D] gradient of the labels' negative log-likelihood, with a small ridge."""
    r = np.einsum("ind,id->in", w.phi, x)
    if not labels:
        error = p[:, :, None] * p[:, None, :] * (scipy.special.expit(r[:, :, None] - r[:, None, :]) - prefers)
        return np.einsum("in,ind->id", error.sum(2) - error.sum(1), w.phi) + 2e-3 * x
    if not pool:
        return 2e-3 * x
    a, b, _ = (np.stack(side, 1) for side in zip(*pool, strict=True))  # [I, L]
    error = scipy.special.expit(np.take_along_axis(r, a, 1) - np.take_along_axis(r, b, 1)) - 1
    counts = np.zeros_like(r)
    for i in range(len(r)):
        counts[i] = np.bincount(a[i], error[i], N) - np.bincount(b[i], error[i], N)
    return np.einsum("in,ind->id", counts / a.shape[1], w.phi) + 2e-3 * x


def _through(w: World, x: Array, p: Array, theta: Array, s: Array, method: str, pool: list, prefers: Array) -> Array:
    """The win rate's gradient through the policy: from the labels so far, each by its pair's importance, or from all."""
    if pool:
        a, b, chance = (np.stack(side, 1) for side in zip(*pool, strict=True))
        ratio = np.take_along_axis(p, a, 1) * np.take_along_axis(p, b, 1) / chance
        ratio = np.minimum(ratio, CLIP)
        ratio /= 2 * ratio.sum(1, keepdims=True)
        earned, drawn = np.zeros_like(p), np.zeros_like(p)
        for i in range(len(p)):
            won, lost = (np.bincount(side[i], ratio[i], N) for side in (a, b))
            earned[i], drawn[i] = 0.5 * (won - lost), won + lost
        u, weight = np.divide(earned, drawn, out=np.zeros_like(p), where=drawn > 0), drawn
    else:
        u, weight = np.einsum("inm,im->in", prefers, p) - 0.5, p
    return push(w, p, theta, s, u, weight, method, np.einsum("ind,id->in", w.phi, x))


def bound(w: World, kl: float) -> Array:
    """[I] best gold score of a policy of the class with that KL."""
    found = []
    for law, gold, psi in zip(w.law, w.gold, w.psi, strict=True):

        def law_of(theta: Array, law: Array = law, psi: Array = psi) -> Array:
            return scipy.special.softmax(np.log(law) + psi @ theta)

        def value(theta: Array, gold: Array = gold, psi: Array = psi, law_of=law_of) -> tuple[float, Array]:
            p = law_of(theta)
            return -float(p @ gold), -((p * (gold - p @ gold)) @ psi)

        def room(theta: Array, law: Array = law, law_of=law_of) -> float:
            return kl - float(scipy.special.rel_entr(law_of(theta), law).sum())

        starts = np.random.default_rng(0).normal(size=(4, M)) * 0.3
        ends = [scipy.optimize.minimize(value, start, jac=True, method="SLSQP", options={"maxiter": 200},
                                        constraints={"type": "ineq", "fun": room}) for start in starts]  # fmt: skip
        found.append(max(-float(end.fun) for end in ends if room(end.x) > -1e-4))
    return np.array(found)


def tuned(method: str) -> dict[str, float]:
    """zeta and the weight of the win rate, chosen on three instances of every kind, at 200 and 3,200 labels."""
    scores = {}
    for zeta in ZETAS:
        for weight in WEIGHTS if method not in ("fixed", "online") else (0.0,):
            scores[zeta, weight] = kept(
                f"tune-{method}-{zeta}-{weight}",
                lambda zeta=zeta, weight=weight: float(np.mean([
                    solve(world(shared, TUNING), method, labels, 1.0, zeta, weight)
                    for shared in (0.0, 0.4) for labels in (200, 3200)
                ])),
            )  # fmt: skip
    zeta, weight = max(scores, key=lambda key: scores[key])
    return {"zeta": zeta, "weight": weight}


def kept(name: str, make: Callable[[], Any]) -> Any:
    """What `make` gives, from its file where it is there."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        if time.process_time() > LIMIT[0]:
            raise SystemExit(f"{name} is next")
        began = time.process_time()
        write_json(path, {"value": make(), "cpu_seconds": time.process_time() - began})
    return read_json(path)["value"]


def main() -> None:
    """Tune, run every cell, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    LIMIT[0] = parser.parse_args().seconds
    make_folder(FOLDER)
    chosen = {method: tuned(method) for method in METHODS[:-1]}
    chosen["hessian"] = chosen["fisher"]  # not tuned by itself
    print(json.dumps(chosen), flush=True)
    cells = [(0.0, labels, 1.0, D) for labels in (0, 3200, 800)] + [(0.4, labels, 1.0, D) for labels in (0, 800)]
    cells += [(1.0, 0, 1.0, D), (0.0, 0, 1.0, WIDE)]
    rows = []
    for cell in cells:
        try:
            rows.append(measured(*cell, chosen))
        except SystemExit as stopped:
            print(stopped)
            return
        print(json.dumps(rows[-1]), flush=True)
    result = {"what": __doc__, "chosen": chosen, "grid": {"zeta": ZETAS, "weight": WEIGHTS}, "rows": rows,
              "cpu_seconds": round(sum(read_json(p)["cpu_seconds"] for p in FOLDER.glob("*.json")), 1),
              "hardware": hardware()}  # fmt: skip
    path = Path(__file__).parent / "results/restricted_policies.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


def measured(shared: float, labels: int, kl: float, d: int, chosen: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Every method on the fresh instances of a cell; `hessian` where there is a label for every pair (labels 0) alone."""
    w = world(shared, FRESH, d)
    gold: dict[str, Array] = {}
    for m in METHODS if not labels else METHODS[:-1]:
        at = chosen[m]["zeta"], chosen[m]["weight"]
        values = kept(
            f"cell-{shared}-{labels}-{kl}-{d}-{m}",
            lambda m=m, at=at: solve(w, m, labels, kl, *at).tolist(),
        )
        gold[m] = np.array(values)
    best = kept(f"bound-{shared}-{kl}-{d}", lambda: bound(w, kl).tolist())
    row: dict[str, Any] = {"shared": shared, "labels": labels or "population", "kl": kl, "d": d, "instances": len(FRESH)}
    row |= {m: list(statistics.bootstrap(v.tolist())) for m, v in gold.items()}
    row |= {"bound": list(statistics.bootstrap(best)), "reference": float((w.law * w.gold).sum(-1).mean())}
    row["gaps"] = {m: _gap(gold[m] - gold["online"]) for m in gold if m not in ("fixed", "online")}
    return row


def _gap(d: Array) -> dict[str, float]:
    """Mean difference by instance with its 95 % interval (Student's t), and in how many instances it is above .01."""
    half = float(scipy.stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    return {"mean": float(d.mean()), "half": half, "ahead": int((d > 0.01).sum()), "behind": int((d < -0.01).sum())}


if __name__ == "__main__":
    main()
