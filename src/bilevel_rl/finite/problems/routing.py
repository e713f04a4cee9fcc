"""Tolls on a road network whose roads slow down with their traffic: many drivers, each of whom takes the quickest way."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.mean_field import FlowObjective, MeanFieldProblem
from bilevel_rl.finite.model.mdp import FiniteMDP

Road = tuple[str, str, float, float]  # from, to, hours when empty, hours that the whole traffic adds

HALF_EMPTY = 2 / 3  # 40 of 60 minutes
BRAESS: tuple[Road, ...] = (
    ("s", "a", 0.0, HALF_EMPTY), ("s", "b", 0.75, 0.0), ("a", "t", 0.75, 0.0), ("b", "t", 0.0, HALF_EMPTY),
    ("a", "b", 0.0, 0.0),
)  # fmt: skip


class TravelTime(FlowObjective):
    """Hours that a driver spends on the road, on average; tolls go from hand to hand and are no cost."""

    name: ClassVar[str] = "travel_time"

    def of(self, x, mu, problem):
        traffic = problem.traffic(mu)
        return jnp.sum(traffic * problem.times(traffic))


class RoutingGame(MeanFieldProblem):
    r"""Drivers go from an origin to a destination; road e takes $t_e + m_e q_e$ hours at the traffic $q_e$ of 0 to 1.

    The leader sets tolls $x_e \ge 0$, in hours' worth of money, and wants little time on the roads. States are a place and
    how many roads led there, so that each hour counts in full: a reward after k roads is divided by $\gamma^k$.

    Args:
        roads: from, to, hours when empty, hours added when all drivers take it.
        tolled: places of the roads in that list that may be tolled, one upper variable each.
        origin, destination: names of places.
        highest: largest toll, in hours.
        temperature: tau, in hours: how little drivers mind a longer way.
        discount: gamma; it only says how often chains restart, since rewards are divided by its powers.
        x0: first toll of every tolled road.

    References:
        Wardrop's equilibrium and Pigou's tolls, in the form of Beckmann, McGuire, Winsten 1956; with entropy it is the
        recursive logit of traffic assignment.
    """

    free: Float[Array, " R"]
    slope: Float[Array, " R"]
    road: Int[Array, "S A"]
    scale: Float[Array, " S"]
    tolled: tuple[int, ...] = eqx.field(static=True)
    roads: tuple[Road, ...] = eqx.field(static=True)
    highest: float
    tau: float = eqx.field(static=True)
    state_names: tuple[str, ...] = eqx.field(static=True)

    name: ClassVar[str] = "routing_game"

    def __init__(
        self,
        roads: tuple[Road, ...] = BRAESS,
        tolled: tuple[int, ...] = (4,),
        origin: str = "s",
        destination: str = "t",
        highest: float = 1.0,
        temperature: float = 0.02,
        discount: float = 0.5,
        x0: float = 0.0,
    ):
        states = _ways(self.name, roads, origin, destination)
        leaving = [[e for e, (start, *_) in enumerate(roads) if start == place] for place, _ in states]
        S, A, end = len(states) + 1, max(map(len, leaving)), len(states)
        road, successors = np.full((S, A), len(roads)), np.full((S, A, 1), end)
        allowed = np.zeros((S, A), bool)
        allowed[end] = True
        for s, ((_, depth), out) in enumerate(zip(states, leaving, strict=True)):
            for a, e in enumerate(out):
                there = roads[e][1]
                road[s, a], allowed[s, a] = e, True
                successors[s, a] = end if there == destination else states.index((there, depth + 1))
        self.mdp = FiniteMDP.from_sparse(
            successors, np.ones((S, A, 1)), np.eye(S)[states.index((origin, 0))], discount, np.arange(S) == end, allowed
        )
        self.objective = TravelTime()
        self.roads, self.tolled = tuple(map(tuple, roads)), tuple(tolled)
        self.free, self.slope = jnp.asarray([r[2] for r in roads]), jnp.asarray([r[3] for r in roads])
        self.road = jnp.asarray(road)
        again = [place for place, _ in states]
        named = [place if again.count(place) == 1 else f"{place} ({depth})" for place, depth in states]
        self.state_names = (*named, destination)
        self.scale = discount ** jnp.asarray([depth for _, depth in states] + [0], float)
        self.highest, self.tau = highest, temperature
        self.x0 = jnp.full(len(tolled), float(x0))

    def traffic(self, mu: Float[Array, "S A"]) -> Float[Array, " R"]:
        """[R] the share of all drivers that takes each road."""
        once = mu / ((1 - self.mdp.discount) * self.scale[:, None])
        return jnp.zeros(len(self.roads) + 1).at[self.road].add(once)[:-1]

    def times(self, traffic: Float[Array, " R"]) -> Float[Array, " R"]:
        """[R] hours that each road takes."""
        return self.free + self.slope * traffic

    def reward_among(self, x, mu):
        paid = self.times(self.traffic(mu)).at[jnp.asarray(self.tolled)].add(x)
        return -jnp.append(paid, 0.0)[self.road] / self.scale[:, None]

    def scene(self, x, found):
        """Roads by the share of all drivers who take them: the discount is no part of the picture."""
        arrays = super().scene(x, found)
        if "flow" in arrays:
            arrays["flow"] = arrays["flow"] / ((1 - self.mdp.discount) * self.scale[:, None])
        return arrays

    def box(self):
        return jnp.zeros(len(self.tolled)), jnp.full(len(self.tolled), self.highest)

    def temperature(self):
        return self.tau


class Braess(RoutingGame):
    r"""Braess's paradox: a shortcut that makes everyone slower, and the toll on it that gives the time back.

    Two ways lead from s to t, each over a road that takes 45 minutes and one that takes 40 minutes times its traffic; a
    shortcut of no length joins them. Without it a driver takes 65 minutes. With it all take both narrow roads and the
    shortcut, 80 minutes. At temperature 0 a toll of $\tfrac38$ hours on the shortcut is best: an eighth of the drivers
    take it, and the mean falls to 64.6875 minutes (1.078125 hours). By Pigou's rule both narrow roads would be charged the
    same 3/8 hours, their marginal cost $m q = \tfrac23 \cdot \tfrac9{16}$.

    References:
        Braess 1968, Über ein Paradoxon aus der Verkehrsplanung; the numbers are those of the textbooks with 4,000 cars.
    """

    name: ClassVar[str] = "braess"
    x_names: ClassVar[tuple[str, ...]] = ("toll on the shortcut",)

    def __init__(self, temperature: float = 0.02, x0: float = 0.0, highest: float = 1.0):
        super().__init__(temperature=temperature, x0=x0, highest=highest)


def _ways(name: str, roads: tuple[Road, ...], origin: str, destination: str) -> list[tuple[str, int]]:
    """All places with the number of roads that led there, the destination left out.

    Raises:
        InvalidProblem: roads that lead in a circle, or that end somewhere else.
    """
    found, now = [(origin, 0)], {origin}
    for depth in range(1, len(roads) + 2):
        ahead = {to for start, to, *_ in roads if start in now}
        stuck = sorted(place for place in now if not any(start == place for start, *_ in roads))
        if stuck:
            raise InvalidProblem(
                message(f"{name}.roads", f"no road leaves {stuck[0]!r}", f"every way must lead to {destination!r}",
                        "Add a road, or remove those that lead there")
            )  # fmt: skip
        now = ahead - {destination}
        if not now:
            return found
        found += [(place, depth) for place in sorted(now)]
    raise InvalidProblem(
        message(f"{name}.roads", "a way that never ends", f"roads lead from {origin!r} to {destination!r} without circles",
                "Remove a road of the circle")
    )  # fmt: skip
