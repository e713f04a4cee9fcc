r"""The paper's algorithm with networks in place of tables: two actors, two critics, one loop, five sequences.

$$V \leftarrow V + \beta_k G, \quad \theta \leftarrow \theta + \alpha_k F_0, \quad
\theta^L \leftarrow \theta^L + \alpha_k F_w, \quad x \leftarrow \Pi_X(x - \zeta_k D)$$
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from bilevel_rl import metrics as M
from bilevel_rl.control import nets, replay, walk
from bilevel_rl.control.estimators.estimator import Here, rewards, slopes, utilities
from bilevel_rl.control.followers import ActorCritic
from bilevel_rl.control.followers.follower import check_follower
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.loop import leader
from bilevel_rl.loop.leader import MovingState
from bilevel_rl.loop.settings import check_fields
from bilevel_rl.loop.solver import Solver
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, TimeScales

# ours: steps of Adam do not fall with k, the others have the exponents of the constant-entropy variant
SEQUENCES = TimeScales(
    zeta=PowerDecay(0.1, 2 / 3), alpha=PowerDecay(1e-3), beta=PowerDecay(3e-3), w=PowerDecay(0.3, 1 / 6),
    tau=PowerDecay(TEMPERATURE),
)  # fmt: skip


class PairState(MovingState):
    """Both followers and their chains.

    Attributes:
        follower, follower_l: what they have learnt.
        chains, chains_l: where their chains are.
        gained: running mean of what the leader gets, for records.
        earned: of what the follower is paid.
    """

    follower: Any
    follower_l: Any
    chains: walk.Chains
    chains_l: walk.Chains
    gained: Array
    earned: Array


class PenaltyActorCritic(Solver):
    r"""Single-loop, first-order penalty actor-critic with on-policy neural followers.

    Every iteration both followers take a step on each of N chains and learn from these steps alone. The penalised one is
    paid $r_x + w\,u$: its actor's step is then $F_w$, up to the factor $(1-\gamma)$ that w absorbs, and
    $D = \nabla c - E_{\pi^L}[\nabla_x u] + \tfrac1w (E_\pi[\nabla_x r] - E_{\pi^L}[\nabla_x r])$.

    Args:
        follower: both; its step sizes give way to alpha and beta.
        scales: the five sequences; alpha and beta are steps of Adam.
        momentum: of x; 0 is the paper's.
        hold: iterations for which x stays; 0 is the paper's.
        average: x is reported as an average of its iterates; 0 is the paper's.
        clip: bound on the length of D.
        chains: N, transitions a follower and iteration.
        common_noise: whether both see the same random numbers and begin alike.

    References:
        arXiv 2601.16399, Algorithm 1.
    """

    follower: ActorCritic = ActorCritic()
    scales: TimeScales = SEQUENCES
    momentum: float = 0.0
    hold: float = 0.0
    average: float = 0.0
    clip: float = 10.0
    chains: int = eqx.field(static=True, default=32)
    common_noise: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "penalty_actor_critic"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def check(self, problem: ControlProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        check_follower(self.name, self.follower, problem.environment)
        leader.check_motion(self.name, self.momentum, self.hold, self.average)
        check_fields(
            self.name,
            ("chains", self.chains, self.chains >= 1, "it must be at least 1"),
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
        )
        lower, upper = float(problem.discount_lower()), float(problem.discount_upper())
        if abs(lower - upper) > 1e-9:
            raise InvalidProblem(
                message(f"{problem.name}.discount_upper", f"{upper:g}, where the follower's is {lower:g}",
                        "the penalty adds the leader's utility to the reward: both must discount alike",
                        "Take the solver covariance, trajectory or backward")
            )  # fmt: skip

    def draws(self, problem: ControlProblem):
        return {"key": 2}

    def init(self, problem: ControlProblem, x0, key) -> PairState:
        env = nets.narrow(problem.environment)
        k, k_l = jax.random.split(key)
        k_l = k if self.common_noise else k_l
        F, F_l = (self.follower.init(env, jax.random.fold_in(one, 0)) for one in (k, k_l))
        at, at_l = (walk.begin(env, self.chains, jax.random.fold_in(one, 1)) for one in (k, k_l))
        return PairState(x0, jnp.zeros((), int), F, F_l, at, at_l, jnp.zeros(()), jnp.zeros(()), **leader.at_rest(x0))

    def step(self, problem: ControlProblem, state: PairState, k, noise) -> PairState:
        now, p = self.scales.at(k), nets.narrow(problem)
        f32 = lambda v: jnp.asarray(v, jnp.float32)  # noqa: E731
        gamma, tau, w = f32(p.discount_lower()), f32(now.tau), f32(now.w)
        here = Here(p, p.environment, self.follower, f32(state.iterate), tau, w, gamma, gamma, 1 - gamma)
        key = nets.key_of(noise["key"])
        key_l = key if self.common_noise else jax.random.fold_in(key, 1)

        # draw (s, a, s') of each chain of each follower
        chains, seen = self._drawn(here, state.follower, state.chains, key)
        chains_l, seen_l = self._drawn(here, state.follower_l, state.chains_l, key_l)

        # V <- V + beta G;  theta <- theta + alpha F
        u_l = utilities(here, seen_l)
        r = rewards(here, seen)
        learn = lambda F, seen, r: self.follower.learn(here.environment, F, seen, r, gamma, tau, now.beta, now.alpha)  # noqa: E731
        follower = learn(state.follower, seen, r)
        follower_l = learn(state.follower_l, seen_l, rewards(here, seen_l) + w * u_l)

        # x <- x - zeta D
        apart = (jnp.mean(slopes(here, seen), 0) - jnp.mean(slopes(here, seen_l), 0)) / w
        direct = jax.grad(lambda x: jnp.mean(utilities(here._replace(x=x), seen_l)))(here.x)
        D = jax.grad(lambda x: jnp.asarray(problem.cost(x), float))(state.iterate) + (apart - direct).astype(float)
        D = D * jnp.minimum(1.0, self.clip / jnp.maximum(jnp.linalg.norm(D), 1e-30))
        moved = leader.move(problem, state, k, D, now.zeta, self.momentum, self.hold, self.average)
        gained = state.gained + 0.01 * (jnp.mean(utilities(here, seen)) - problem.cost(state.x) - state.gained)
        earned = state.earned + 0.01 * (jnp.mean(r) - state.earned)
        samples = state.samples + 2 * self.chains
        return PairState(
            samples=samples, follower=follower, follower_l=follower_l, chains=chains, chains_l=chains_l, gained=gained,
            earned=earned, **moved,
        )  # fmt: skip

    def _drawn(self, here: Here, F: Any, chains: walk.Chains, key: Array) -> tuple[walk.Chains, replay.Rows]:
        act = lambda obs, key: self.follower.act(here.environment, F, obs, key)  # noqa: E731
        after, seen = walk.step(here.environment, chains, act, key, here.cut)
        features = jax.vmap(here.problem.features)(seen.t)
        return after, replay.Rows(seen.t, features, seen.first, seen.over)

    def said(self, problem: ControlProblem, state: PairState, k) -> dict[str, Array]:
        """What the leader knows of its own progress, for records."""
        return {M.OUTCOME.key: state.gained, M.FOLLOWER_OUTCOME.key: state.earned}

    def tracked(self, problem: ControlProblem, state: PairState, k) -> Any:
        return state.follower
