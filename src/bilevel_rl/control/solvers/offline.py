r"""Two levels on stored data: learners at two points around x, on the same rows and noise; x descends the difference.

$$g = \frac{\hat f(x + \delta\Delta) - \hat f(x - \delta\Delta)}{2\delta}\, \Delta, \qquad
x \leftarrow x - \big(\nabla^2 c(x) + I/\zeta\big)^{-1} \big(\nabla c(x) + g\big)$$

with random signs $\Delta$. Learners go on from what they knew at the last points. Whatever a learner is, it is asked, never
differentiated; what x costs by itself, c, is, and the step is implicit in it: a plain one, $\zeta g$, where c is flat.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl import metrics as M
from bilevel_rl.control import nets
from bilevel_rl.control.offline import OfflineLearner, parts
from bilevel_rl.control.offline.bank import draw
from bilevel_rl.control.offline.evaluation import Features, evaluated
from bilevel_rl.control.offline.learners import BC, IQL
from bilevel_rl.control.offline.two_levels import JudgedPolicy, OfflineProblem
from bilevel_rl.control.solvers.differences import slope
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop.settings import check_fields
from bilevel_rl.loop.solver import Solver, State
from bilevel_rl.schedules import PowerDecay


class StoredState(State):
    """What an iteration carries; two points around x.

    Attributes:
        learnt: [2, ...] what each learner knows.
        gained: mean over both points of -Phi, for records.
    """

    learnt: Any
    gained: Array


class OfflineIQL(Solver):
    """IQL at two points around x.

    Args:
        learner: who learns from the data.
        zeta: step of x.
        radius: delta, in units of x.
        clip: bound on the length of the difference's slope g.
        first: inner loops for which x stays at first, while learners learn at all.
        inner: updates of an inner loop; critics that got fewer than about 10 / polyak see little of what x does beyond the
            next rewards.
        batch: rows of an update.
        judged: held-out rows by which a policy is valued, where the problem asks.
        features: of that value (`offline.evaluation`).

    References:
        Spall 1992; Kostrikov, Nair, Levine 2021, arXiv 2110.06169. Fitted Q evaluation: Le, Voloshin, Yue 2019, arXiv
        1903.08738.
    """

    learner: OfflineLearner = IQL(polyak=0.02)
    zeta: PowerDecay = PowerDecay(5.0, 0.602)
    radius: PowerDecay = PowerDecay(0.5, 0.101)
    clip: float = 0.2
    first: float = 5.0
    inner: int = eqx.field(static=True, default=800)
    batch: int = eqx.field(static=True, default=128)
    judged: int = eqx.field(static=True, default=4096)
    features: int = eqx.field(static=True, default=256)

    name: ClassVar[str] = "offline_iql"
    offline: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("spall1992spsa", "le2019batch", "kostrikov2021iql")

    def check(self, problem: OfflineProblem) -> None:
        if not isinstance(problem, OfflineProblem):
            raise InvalidConfig(
                message(f"solver {self.name}", f"the problem {problem.name}, which has no stored data",
                        "this solver learns from data", "Take covariance, or one of the problems named offline or mixture")
            )  # fmt: skip
        self.learner.check(problem.environment)
        if problem.asks_likelihood and not self.learner.likelihood:
            raise InvalidConfig(
                message(f"{self.name}.learner", f"{self.learner.name}, whose policy has no likelihood",
                        f"{problem.name} asks how likely actions are", "Take iql, bc, odice or direct_advantage")
            )  # fmt: skip
        self.zeta.check(f"{self.name}.zeta")
        self.radius.check(f"{self.name}.radius")
        check_fields(
            self.name,
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
            ("first", self.first, self.first >= 0, "it must be at least 0"),
            ("inner", self.inner, self.inner >= 1, "it must be at least 1"),
            ("batch", self.batch, self.batch >= 1, "it must be at least 1"),
            ("judged", self.judged, self.judged >= 1, "it must be at least 1"),
            ("features", self.features, self.features >= 1, "it must be at least 1"),
        )

    def draws(self, problem: OfflineProblem):
        return {"key": 2}

    def init(self, problem: OfflineProblem, x0, key: Array) -> StoredState:
        p, learner = nets.narrow(problem), nets.narrow(self.learner)
        F = learner.init(p.environment, p.bank_at(x0.astype(jnp.float32)).facts, key)
        twice = jax.tree.map(lambda v: jnp.broadcast_to(v, (2, *v.shape)), F)
        return StoredState(x0, jnp.zeros((), int), twice, jnp.zeros(()))

    def step(self, problem: OfflineProblem, state: StoredState, k, noise) -> StoredState:
        k_signs, k_loop = jax.random.split(nets.key_of(noise["key"]))
        x, radius = state.x, self.radius(k)
        ahead = radius * jax.random.rademacher(k_signs, x.shape, float)
        at = jax.vmap(problem.project)(jnp.stack([x + ahead, x - ahead]))
        p, gamma = nets.narrow(problem), jnp.asarray(problem.discount_lower(), jnp.float32)

        def point(x, F):
            F = self._inner(p, x, F, gamma, k, k_loop)
            return F, p.outcome(x, self._judged(p, F, gamma, k_loop))

        F, f = jax.vmap(point)(at.astype(jnp.float32), state.learnt)
        Phi = f.astype(float) + jax.vmap(lambda y: jnp.asarray(problem.cost(y), float))(at)
        g = slope(at, f.astype(float), radius, self.clip)
        moved = implicit_step(lambda y: jnp.asarray(problem.cost(y), float), x, g, self.zeta(k))
        x = problem.project(jnp.where(k < self.first, x, moved))
        rows = 2 * self.inner * self.batch * self.learner.window
        return StoredState(x, state.samples + rows, F, -jnp.mean(Phi))

    def _inner(self, p: Any, x, F: Any, gamma, k, key):
        """The inner loop at one point."""
        learner, env, bank = nets.narrow(self.learner), p.environment, p.bank_at(x)

        def update(F, i):
            k_rows, k_learn = jax.random.split(jax.random.fold_in(key, i))
            number = k * self.inner + i
            return learner.update(env, F, draw(bank, self.batch, learner.window, k_rows), gamma, number, k_learn), None

        return jax.lax.scan(update, F, jnp.arange(self.inner))[0]

    def _acts(self, env: Any, F: Any, obs: Array, key: Array) -> Array:
        """Encoded actions [B, e] of a policy."""
        learner = nets.narrow(self.learner)
        one = lambda obs, key: learner.act(env, F, learner.recall(env, F), obs, key)[0]  # noqa: E731
        return parts.encoded(env.action, jax.vmap(one)(obs, jax.random.split(key, obs.shape[0])))

    def _judged(self, p: Any, F: Any, gamma: Any, key: Array) -> JudgedPolicy:
        """The same rows and features at both points: their scatter cancels in the difference."""
        learner, env = nets.narrow(self.learner), p.environment
        likely = (lambda obs, a: learner.log_prob(env, F, obs, a)) if learner.likelihood else None
        worth = None
        if p.asks_value:
            k_rows, k_act = jax.random.split(key)
            rows = draw(p.held, min(self.judged, p.held.rows), 1, k_rows)
            worth = evaluated(Features(env, self.features), rows, lambda obs: self._acts(env, F, obs, k_act), gamma)
        return JudgedPolicy(likely, worth)

    def said(self, problem: OfflineProblem, state: StoredState, k) -> dict[str, Array]:
        """What the leader knows of its own progress, for records."""
        return {M.OUTCOME.key: state.gained}

    def tracked(self, problem: OfflineProblem, state: StoredState, k) -> Any:
        return jax.tree.map(lambda v: v[0], state.learnt)


def implicit_step(c: Any, x: Float[Array, " d"], g: Float[Array, " d"], zeta: Any) -> Float[Array, " d"]:
    r"""$x - (\nabla^2 c(x) + I/\zeta)^{-1} (\nabla c(x) + g)$; where c is not convex, less far.

    Example:
        >>> steep = lambda y: 50 * y[0] ** 2
        >>> implicit_step(steep, jnp.array([1.0, 1.0]), jnp.array([0.0, 0.1]), 2.0).round(3).tolist()
        [0.005, 0.8]
    """
    H = jax.hessian(c)(x)
    H = H + jnp.maximum(0.0, -jnp.min(jnp.linalg.eigvalsh(H))) * jnp.eye(len(x))
    return x - jnp.linalg.solve(H + jnp.eye(len(x)) / zeta, jax.grad(c)(x) + g)


class OfflineBC(OfflineIQL):
    """Behaviour cloning at two points around x: what x weighs decides what is cloned.

    Args:
        learner: who learns from the data.
    """

    learner: OfflineLearner = BC()
    inner: int = eqx.field(static=True, default=200)

    name: ClassVar[str] = "offline_bc"
    references: ClassVar[tuple[str, ...]] = ("spall1992spsa", "le2019batch")
