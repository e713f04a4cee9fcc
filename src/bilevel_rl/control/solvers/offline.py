r"""Two levels on stored data: learners at two points around x, on the same rows and noise; x descends the difference.

$$g = \frac{\hat\Phi(x + \delta\Delta) - \hat\Phi(x - \delta\Delta)}{2\delta}\, \Delta$$

with random signs $\Delta$. Learners go on from what they knew at the last points. Whatever a learner is, it is asked, never
differentiated; what x does to $\Phi$ by itself is counted exactly, in the difference.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel_rl import metrics as M
from bilevel_rl.control import nets
from bilevel_rl.control.offline import OfflineLearner, parts
from bilevel_rl.control.offline.bank import Bank, draw
from bilevel_rl.control.offline.learners import BC, IQL
from bilevel_rl.control.offline.two_levels import JudgedPolicy, OfflineProblem
from bilevel_rl.control.solvers.differences import slope
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop.settings import check_fields
from bilevel_rl.loop.solver import Solver, State
from bilevel_rl.schedules import PowerDecay


class Evaluated(eqx.Module):
    """Fitted Q evaluation of a policy.

    Attributes:
        Q: its critic, one network on an axis of one.
        slow: slow copy.
    """

    Q: nets.Trained
    slow: Any


class StoredState(State):
    """What an iteration carries; two points around x.

    Attributes:
        learnt: [2, ...] what each learner knows.
        evaluated: [2, ...] what is known of each policy's value; () where nobody asks.
        gained: mean over both points of -Phi, for records.
    """

    learnt: Any
    evaluated: Any
    gained: Array


class OfflineIQL(Solver):
    """IQL at two points around x.

    Args:
        learner: who learns from the data.
        zeta: step of x.
        radius: delta, in units of x.
        clip: bound on the length of a slope.
        first: inner loops for which x stays at first, while learners learn at all.
        inner: updates of an inner loop.
        batch: rows of an update.

    References:
        Spall 1992; Kostrikov, Nair, Levine 2021, arXiv 2110.06169. Fitted Q evaluation: Le, Voloshin, Yue 2019, arXiv
        1903.08738.
    """

    learner: OfflineLearner = IQL()
    zeta: PowerDecay = PowerDecay(5.0, 0.602)
    radius: PowerDecay = PowerDecay(0.5, 0.101)
    clip: float = 0.2
    first: float = 5.0
    inner: int = eqx.field(static=True, default=200)
    batch: int = eqx.field(static=True, default=128)

    name: ClassVar[str] = "offline_iql"
    offline: ClassVar[bool] = True
    black_box: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("spall1992spsa",)

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
        )

    def draws(self, problem: OfflineProblem):
        return {"key": 2}

    def init(self, problem: OfflineProblem, x0, key: Array) -> StoredState:
        p, learner = nets.narrow(problem), nets.narrow(self.learner)
        k_learner, k_value = jax.random.split(key)
        F = learner.init(p.environment, p.bank_at(x0.astype(jnp.float32)).facts, k_learner)
        E: Any = ()
        if p.asks_value:
            Q = parts.critics(p.environment, learner.width, k_value, count=1)
            E = Evaluated(nets.Trained.begin(Q), Q)
        twice = lambda tree: jax.tree.map(lambda v: jnp.broadcast_to(v, (2, *v.shape)), tree)  # noqa: E731
        return StoredState(x0, jnp.zeros((), int), twice(F), twice(E), jnp.zeros(()))

    def step(self, problem: OfflineProblem, state: StoredState, k, noise) -> StoredState:
        k_signs, k_loop = jax.random.split(nets.key_of(noise["key"]))
        x, radius = state.x, self.radius(k)
        ahead = radius * jax.random.rademacher(k_signs, x.shape, float)
        at = jax.vmap(problem.project)(jnp.stack([x + ahead, x - ahead]))
        p, gamma = nets.narrow(problem), jnp.asarray(problem.discount_lower(), jnp.float32)

        def point(x, F, E):
            F, E = self._inner(p, x, F, E, gamma, k, k_loop)
            return F, E, p.outcome(x, self._judged(p, F, E, k_loop))

        F, E, f = jax.vmap(point)(at.astype(jnp.float32), state.learnt, state.evaluated)
        Phi = f.astype(float) + jax.vmap(lambda y: jnp.asarray(problem.cost(y), float))(at)
        g = slope(at, Phi, radius, self.clip)
        x = problem.project(x - jnp.where(k < self.first, 0.0, self.zeta(k)) * g)
        rows = 2 * self.inner * self.batch * self.learner.window
        return StoredState(x, state.samples + rows, F, E, -jnp.mean(Phi))

    def _inner(self, p: Any, x, F: Any, E: Any, gamma, k, key):
        """The inner loop at one point."""
        learner, env, bank = nets.narrow(self.learner), p.environment, p.bank_at(x)

        def update(carry, i):
            F, E = carry
            k_rows, k_learn, k_held, k_value = jax.random.split(jax.random.fold_in(key, i), 4)
            number = k * self.inner + i
            F = learner.update(env, F, draw(bank, self.batch, learner.window, k_rows), gamma, number, k_learn)
            if p.asks_value:
                E = self._evaluated(p.held, env, F, E, gamma, k_held, k_value)
            return (F, E), None

        return jax.lax.scan(update, (F, E), jnp.arange(self.inner))[0]

    def _acts(self, env: Any, F: Any, obs: Array, key: Array) -> Array:
        """Encoded actions [B, e] of a policy."""
        learner = nets.narrow(self.learner)
        one = lambda obs, key: learner.act(env, F, learner.recall(env, F), obs, key)[0]  # noqa: E731
        return parts.encoded(env.action, jax.vmap(one)(obs, jax.random.split(key, obs.shape[0])))

    def _evaluated(self, held: Bank, env: Any, F: Any, E: Evaluated, gamma, k_rows, key) -> Evaluated:
        """One update of Q towards r + gamma Q(s', pi(s')) on held-out rows."""
        rows = draw(held, self.batch, 1, k_rows)
        V = parts.values(env, E.slow, rows.t.next_obs, self._acts(env, F, rows.t.next_obs, key))[0]
        y = rows.reward + gamma * parts.ongoing(rows.t.terminated) * V
        code = parts.encoded(env.action, rows.t.action)
        step = jax.grad(lambda Q: parts.critic_loss(env, Q, rows, code, y))(E.Q.params)
        Q = E.Q.descend(step, self.learner.rate)
        return Evaluated(Q, nets.follow(E.slow, Q.params, self.learner.polyak))

    def _judged(self, p: Any, F: Any, E: Any, key: Array) -> JudgedPolicy:
        learner, env = nets.narrow(self.learner), p.environment
        likely = (lambda obs, a: learner.log_prob(env, F, obs, a)) if learner.likelihood else None
        worth = (lambda obs: parts.values(env, E.slow, obs, self._acts(env, F, obs, key))[0]) if p.asks_value else None
        return JudgedPolicy(likely, worth)

    def said(self, problem: OfflineProblem, state: StoredState, k) -> dict[str, Array]:
        """What the leader knows of its own progress, for records."""
        return {M.OUTCOME.key: state.gained}

    def tracked(self, problem: OfflineProblem, state: StoredState, k) -> Any:
        return jax.tree.map(lambda v: v[0], state.learnt)


class OfflineBC(OfflineIQL):
    """Behaviour cloning at two points around x: what x weighs decides what is cloned.

    Args:
        learner: who learns from the data.
    """

    learner: OfflineLearner = BC()

    name: ClassVar[str] = "offline_bc"
