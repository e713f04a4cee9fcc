"""Tax design: the leader taxes income and consumption, households of two kinds work, save and spend."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float, Int

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.closed_form import ClosedFormProblem
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.model.contexts import side_by_side
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem, UpperObjective

TASTES = ((0.6, 0.3, 0.1), (0.1, 0.7, 0.2))
LARGEST_ASSETS, NOISE_STD, START_STD = 100.0, 5.0, 2**0.5
HOUR, UNIT = 0.89, 1.25  # of work, and of each of the three goods
LARGEST_RATE = 2.0


class Economy(eqx.Module):
    r"""What a household may do, on a grid of assets.

    A household with assets s works $h = .89 i$ and buys $c_j = 1.25 k_j$ of three goods. Its assets become
    $z = \mathrm{clip}(s + (1-x) h - \sum c)$, shared between the two grid points beside z, and then $s' = z + N(0, 25)$,
    each grid point taking the mass nearest to it and the ends of the grid all beyond them. Assets start as
    $\sqrt2\, N(0,1)$.

    Attributes:
        assets: [n] grid.
        hours: [H] h.
        bundles: [M, 3] c.
        noise: [n, n] law of s' given the grid point before the noise.
        start: [n] law of the first assets.
        total: [M] what each bundle costs in units.
    """

    assets: Float[Array, " n"]
    hours: Float[Array, " H"]
    bundles: Float[Array, "M 3"]
    noise: Float[Array, "n n"]
    start: Float[Array, " n"]
    total: Int[Array, " M"]

    def __init__(self, points: int, hours: int, levels: int):
        if points < 3 or hours < 1 or levels < 1:
            raise InvalidProblem(
                message("Economy", f"points={points}, hours={hours}, levels={levels}",
                        "three grid points, one choice of hours and one level of a good are the least", "Raise them")
            )  # fmt: skip
        grid = np.linspace(-LARGEST_ASSETS, LARGEST_ASSETS, points)
        edges = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
        units = np.stack(np.meshgrid(*[np.arange(levels)] * 3, indexing="ij"), -1).reshape(-1, 3)
        self.assets, self.bundles = jnp.asarray(grid), jnp.asarray(UNIT * units)
        # ten choices span 0 to 8.01 hours whatever their number
        self.hours = jnp.asarray(HOUR * np.linspace(0, 9, hours) if hours > 1 else np.zeros(1))
        self.noise = jnp.asarray(np.diff(scipy.special.ndtr((edges - grid[:, None]) / NOISE_STD), axis=1))
        self.start = jnp.asarray(np.diff(scipy.special.ndtr(edges / START_STD)))
        self.total = jnp.asarray(units.sum(1))

    def comfort(self) -> Float[Array, " n"]:
        r"""$\log(s/20 + 1)$ of savings; debts count as they are."""
        return jnp.where(self.assets > 0, jnp.log1p(jnp.maximum(self.assets, 0.0) / 20), self.assets)

    def pleasure(self, taste: Float[Array, " 3"], vat: Float[Array, ""]) -> Float[Array, " M"]:
        r"""$\prod_j (c_j/(1+y))^{a_j}$ of each bundle."""
        # the rate taken out of the product: a good that is not bought has no finite slope
        return jnp.prod(self.bundles**taste, -1) / (1 + vat) ** jnp.sum(taste)

    def revenue(self, x: Float[Array, " 2"]) -> Float[Array, "H M"]:
        r"""The leader's: $15\, \mathrm{mean}_j(c_j/(1+y))/5 + 5 \log(1 + \sum_j y c_j/(1+y) + x h)$."""
        bought = self.bundles / (1 + x[1])
        taxed = x[1] * jnp.sum(bought, -1) + x[0] * self.hours[:, None]
        return 3 * jnp.mean(bought, -1) + 5 * jnp.log1p(taxed)

    def share(self, income_tax, spent: Float[Array, " m"]) -> tuple[Int[Array, "n H m"], Float[Array, "n H m"]]:
        """The grid point below z, and z's share of the one above, for every assets, hours and spending."""
        z = self.assets[:, None, None] + (1 - income_tax) * self.hours[:, None] - spent
        at = (jnp.clip(z, self.assets[0], self.assets[-1]) - self.assets[0]) / (self.assets[1] - self.assets[0])
        below = jnp.minimum(jax.lax.stop_gradient(at).astype(int), self.assets.shape[0] - 2)
        return below, at - below


class TaxDesign(ClosedFormProblem):
    r"""$x = (x, y)$: the rates of income and of value-added tax, in [0, 2], of households that answer exactly.

    The household's reward is $\log(s/20+1) - .1 h^2 + \prod_j (c_j/(1+y))^{a_j}$ (s itself where it is negative), its kind
    the exponents a: (.6, .3, .1) or (.1, .7, .2), each half of them. The leader's is `Economy.revenue`;
    $\Phi = -E \sum_t \gamma^t\,\text{revenue}$, without end (the study stops at 200 steps: $.9^{200}$ of it is left).

    Bundles of the same total lead to the same assets, so a soft-optimal household's choice of hours and total is that of
    an MDP of H (3L - 2) actions, paid $\tau \log \sum e^{\cdot/\tau}$ of the bundles behind: exact, and a tenth of the work.

    On the 401-point grid, at tau = .1, (.3, .3) gives 32.56, as published; for the second kind alone 33.12. That is with
    the noise as in `Economy`: assets clipped before it, its variance 25, and the mass beyond the grid on the end points.

    Args:
        points: n of the grid of assets.
        hours, levels: choices of hours, and of each good.
        temperature: entropy weight.
        discount: of both levels.

    References:
        The tax design of Thoma et al. 2024. Cost O(n^3) a Newton step, of which there are about ten.
    """

    economy: Economy
    tastes: Float[Array, "C 3"]
    discount: float
    graded_at: float = eqx.field(static=True)

    name: ClassVar[str] = "tax_design"
    references: ClassVar[tuple[str, ...]] = ("thoma2024hpgd",)

    def __init__(
        self, points: int = 401, hours: int = 10, levels: int = 5, temperature: float = 0.1, discount: float = 0.9,
        x0: tuple[float, float] = (0.3, 0.3),
    ):  # fmt: skip
        self.mdp = self.objective = None
        self.economy, self.tastes = Economy(points, hours, levels), jnp.asarray(TASTES)
        self.graded_at, self.discount = temperature, discount
        self.x0 = jnp.asarray(x0, float)

    def hyper_objective(self, x, tau):
        return jnp.mean(jnp.stack([self.of_kind(x, tau, taste) for taste in self.tastes]))

    def of_kind(self, x: Float[Array, " d"], tau, taste: Float[Array, " 3"]) -> Float[Array, ""]:
        """The leader's loss by households of one kind."""
        e, gamma = self.economy, self.discount
        totals = 3 * (round(e.bundles.shape[0] ** (1 / 3)) - 1) + 1
        among = jnp.where(e.total == jnp.arange(totals)[:, None], e.pleasure(taste, x[1]) / tau, -jnp.inf)  # [m, M]
        chosen = jax.nn.softmax(among)
        r = (
            e.comfort()[:, None, None]
            - 0.1 * e.hours[:, None] ** 2
            + tau * jax.scipy.special.logsumexp(among, axis=1)
        )
        below, above = e.share(x[0], UNIT * jnp.arange(totals))
        n = e.assets.shape[0]

        def action_value(V, r=r, above=above):
            ahead = e.noise @ V
            Q = r + gamma * ((1 - above) * ahead[below] + above * ahead[below + 1])
            return Q.reshape(n, -1)

        def kernel(pi, above=above):
            pi = pi.reshape(above.shape)
            rows = jnp.broadcast_to(jnp.arange(n)[:, None, None], below.shape)
            onto = jnp.zeros((n, n)).at[rows, below].add(pi * (1 - above)).at[rows, below + 1].add(pi * above)
            return onto @ e.noise

        # Newton's method on V = tau logsumexp(Q / tau), then one step that is differentiated (planning.soft_optimal)
        fixed = jax.tree.map(jax.lax.stop_gradient, (r, above, jnp.asarray(tau, float)))

        def newton(carry):
            V, _, k = carry
            Q = action_value(V, *fixed[:2])
            change = planning.soft_value(Q, fixed[2]) - V
            step = planning.dense_solve(jnp.eye(n) - gamma * kernel(jax.nn.softmax(Q / fixed[2]), fixed[1]), change, V)
            return V + step, jnp.max(jnp.abs(change)), k + 1

        def unfinished(carry):
            return (carry[1] > 1e-11 * (1 + jnp.max(jnp.abs(carry[0])))) & (carry[2] < 100)

        V, _, _ = jax.lax.while_loop(unfinished, newton, (jnp.zeros(n), jnp.array(jnp.inf), 0))
        V = jax.lax.stop_gradient(V)
        here = jax.lax.stop_gradient(jnp.eye(n) - gamma * kernel(jax.nn.softmax(action_value(V) / tau)))
        V = V + planning.dense_solve(here, planning.soft_value(action_value(V), tau) - V, V)
        pi = jax.nn.softmax(action_value(V) / tau)
        paid = (e.revenue(x) @ chosen.T).ravel()  # [H m], the mean over the bundles of each total
        worth = planning.dense_solve(jnp.eye(n) - gamma * kernel(pi), pi @ paid)
        return -jnp.dot(e.start, worth)

    def box(self):
        return jnp.zeros(2), jnp.full(2, LARGEST_RATE)

    def temperature(self):
        return self.graded_at


class Revenue(UpperObjective):
    """The leader's discounted revenue, linear in the visitation."""

    economy: Economy
    discount: float

    name: ClassVar[str] = "revenue"

    def bonus(self, x):
        return self.economy.revenue(x).reshape(1, -1) / (1 - self.discount)

    def bonus_at(self, x, s, a):
        return self.bonus(x)[0, a]

    def value(self, x, pi, problem: BilevelProblem):
        d = planning.visitation(problem.transitions(x), pi)
        return self.visited_value(x, d[:, None] * pi)


class SmallTaxDesign(BilevelProblem):
    """Tax design as a finite MDP, so that solvers that learn from samples can act on it: fewer choices, a coarser grid.

    States are (kind, assets), actions (hours, bundle); everything else is as in `TaxDesign`, with which it agrees on the
    same grid. Memory is O(n^2 H L^3): every grid point can be reached.

    Args:
        points, hours, levels: as there.
        temperature, discount: as there.
    """

    economy: Economy
    tastes: Float[Array, "C 3"]
    graded_at: float = eqx.field(static=True)

    name: ClassVar[str] = "small_tax_design"
    references: ClassVar[tuple[str, ...]] = ("thoma2024hpgd",)

    def __init__(
        self, points: int = 21, hours: int = 4, levels: int = 2, temperature: float = 0.3, discount: float = 0.9,
        x0: tuple[float, float] = (0.3, 0.3),
    ):  # fmt: skip
        self.economy, self.tastes = Economy(points, hours, levels), jnp.asarray(TASTES)
        self.objective = Revenue(self.economy, discount)
        self.graded_at, self.x0 = temperature, jnp.asarray(x0, float)
        P = np.asarray(self._kernel(self.x0))
        # every successor is listed, in order, whatever its probability: x moves the probabilities alone
        listed = np.broadcast_to(np.arange(points), P.shape)
        kinds = [FiniteMDP.from_sparse(listed, P, self.economy.start, discount) for _ in TASTES]
        self.mdp = side_by_side(kinds)

    def _kernel(self, x) -> Float[Array, "n A n"]:
        e = self.economy
        below, above = e.share(x[0], jnp.sum(e.bundles, -1))
        n = e.assets.shape[0]
        below, above = below.reshape(n, -1), above.reshape(n, -1, 1)
        return (1 - above) * e.noise[below] + above * e.noise[below + 1]

    def transitions(self, x):
        return self.mdp.with_probabilities(jnp.tile(self._kernel(x), (self.tastes.shape[0], 1, 1)))

    def reward(self, x):
        e = self.economy
        pleasure = jax.vmap(lambda taste: e.pleasure(taste, x[1]))(self.tastes)  # [C, M]
        of_choice = pleasure[:, None] - 0.1 * e.hours[:, None] ** 2  # [C, H, M]
        r = e.comfort()[None, :, None] + of_choice.reshape(len(self.tastes), 1, -1)
        return r.reshape(-1, r.shape[-1])

    def box(self):
        return jnp.zeros(2), jnp.full(2, LARGEST_RATE)

    def temperature(self):
        return self.graded_at
