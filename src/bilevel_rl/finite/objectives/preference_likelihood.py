"""Upper objective of RLHF in an MDP: how badly the reward model explains a judge's choices between trajectories."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model import sampling
from bilevel_rl.finite.problem import BilevelProblem, ObjectiveSample, UpperObjective

ENUMERATION_LIMIT = 2048  # ours: trajectories; their pairs then fill 32 MiB


class PreferenceLikelihood(UpperObjective):
    r"""Negative log-likelihood of a judge's choices between pairs of trajectories of the follower.

    $$f(x, \pi) = -E_{y_1, y_2 \sim \pi}\,E_{\ell}\big[\log \sigma\big(\ell\,(R_x(y_1) - R_x(y_2))\big)\big] + \lambda |x|^2,
    \qquad \Pr(\ell = 1) = \sigma\big(\kappa\,(G(y_1) - G(y_2))\big)$$

    with $R_x(y) = \sum_{t<H} \gamma^t r_x(s_t, a_t)$, and G the same sum of the gold reward g: a Bradley-Terry judge.
    Trajectories start from rho and last H steps.

    `value` enumerates all $(S A)^H$ trajectories; `sample` draws B pairs and one label a pair, with the score function
    and a leave-one-out baseline, from $2 B H$ transitions.

    Args:
        gold: [S, A] g, in units of reward.
        horizon: H >= 1.
        pairs: B >= 1.
        regulariser: lambda.
        sharpness: kappa > 0 of the judge.

    Raises:
        InvalidProblem: H or B below 1; and by `value`, more than `ENUMERATION_LIMIT` trajectories.
    """

    gold: Float[Array, "S A"]
    regulariser: float = 0.0
    sharpness: float = 1.0
    horizon: int = eqx.field(static=True, default=3)
    pairs: int = eqx.field(static=True, default=8)

    name: ClassVar[str] = "preference_likelihood"

    def __init__(self, gold, horizon: int = 3, pairs: int = 8, regulariser: float = 0.0, sharpness: float = 1.0):
        if horizon < 1 or pairs < 1:
            raise InvalidProblem(
                message("PreferenceLikelihood", f"horizon={horizon}, pairs={pairs}", "both must be at least 1",
                        "Raise them")
            )  # fmt: skip
        self.gold = jnp.asarray(gold, float)
        self.horizon, self.pairs = horizon, pairs
        self.regulariser, self.sharpness = regulariser, sharpness

    # -- exact --------------------------------------------------------------------------------------------------------

    def value(self, x, pi, problem: BilevelProblem):
        p, s, a = enumerate_trajectories(problem.transitions(x), pi, self.horizon)
        model, judge = self._returns(problem.reward(x)[s, a], problem), self._returns(self.gold[s, a], problem)
        loss = self._expected_loss(model[:, None] - model[None], judge[:, None] - judge[None])
        return p @ loss @ p + self.regulariser * jnp.sum(x**2)

    # -- sampled ------------------------------------------------------------------------------------------------------

    def draws(self, problem):
        B, H = self.pairs, self.horizon
        return {"start": (2 * B,), "label": (B,), "steps": (2 * B, H, 2)}

    def sample(self, x, pi, problem: BilevelProblem, noise):
        B, H = self.pairs, self.horizon
        mdp = problem.transitions(x)
        y = sampling.trajectories(mdp, pi, noise["start"], noise["steps"])  # [2B, H]
        judge = self._returns(self.gold[y.s, y.a], problem).reshape(2, B)
        label = jnp.where(noise["label"] < jax.nn.sigmoid(self.sharpness * (judge[0] - judge[1])), 1.0, -1.0)

        def losses(x):  # [B]
            r = problem.reward_at(x, y.s.ravel(), y.a.ravel()).reshape(2 * B, H)
            model = self._returns(r, problem).reshape(2, B)
            return -jax.nn.log_sigmoid(label * (model[0] - model[1]))

        loss = losses(x)
        # leave-one-out: independent of the pair it is subtracted from; alone, the loss of an even judge
        baseline = (jnp.sum(loss) - loss) / (B - 1) if B > 1 else jnp.full(B, jnp.log(2.0))
        weight = jnp.tile(loss - baseline, 2) / B  # [2B]

        def surrogate(x):
            total = jnp.mean(losses(x)) + self.regulariser * jnp.sum(x**2)
            if problem.moves_transitions and H > 1:
                at = problem.transitions(x)
                log_p = jnp.log(sampling.transition_probability(at, *y.steps)).reshape(2 * B, H - 1)
                total = total + jnp.sum(weight * jnp.sum(log_p, 1))
            return total

        score = (jax.nn.one_hot(y.a, mdp.n_actions) - pi[y.s]) * weight[:, None, None]
        grad_theta = jnp.zeros_like(pi).at[y.s].add(score)
        value = jnp.mean(loss) + self.regulariser * jnp.sum(x**2)
        return ObjectiveSample(value, jax.grad(surrogate)(x), grad_theta, jnp.asarray(2 * B * H), y.steps)

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _returns(self, r: Float[Array, "N H"], problem: BilevelProblem) -> Float[Array, " N"]:
        return jnp.sum(r * problem.mdp.discount ** jnp.arange(self.horizon), -1)

    def _expected_loss(self, model: Array, judge: Array) -> Array:
        """-E over the label of log sigma(label * model)."""
        p = jax.nn.sigmoid(self.sharpness * judge)
        return -p * jax.nn.log_sigmoid(model) - (1 - p) * jax.nn.log_sigmoid(-model)


def enumerate_trajectories(
    mdp, pi: Float[Array, "S A"], horizon: int
) -> tuple[Float[Array, " M"], Int[Array, "M H"], Int[Array, "M H"]]:
    """Every trajectory of `horizon` steps with its probability: p [M], states [M, H], actions [M, H]; M = (S A)^H.

    Raises:
        InvalidProblem: more than `ENUMERATION_LIMIT` of them.
    """
    S, A = mdp.n_states, mdp.n_actions
    M = (S * A) ** horizon
    if M > ENUMERATION_LIMIT:
        raise InvalidProblem(
            message("PreferenceLikelihood.value", f"(S A)^H = ({S} * {A})^{horizon} = {M} trajectories",
                    f"at most {ENUMERATION_LIMIT} are enumerated",
                    "Shorten the horizon or the MDP, or solve with evaluate=False: sampling has no limit")
        )  # fmt: skip
    digits = jnp.arange(M)[:, None] // (S * A) ** jnp.arange(horizon - 1, -1, -1) % (S * A)
    s, a = jnp.divmod(digits, A)
    P = mdp.dense()
    p = mdp.start[s[:, 0]] * jnp.prod(pi[s, a], 1) * jnp.prod(P[s[:, :-1], a[:, :-1], s[:, 1:]], 1)
    return p, s, a
