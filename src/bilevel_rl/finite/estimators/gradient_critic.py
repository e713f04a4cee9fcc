r"""The gradient critic: a table of $\nabla_x Q$, and the performance-difference lemma."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.estimators.estimator import Estimate, Estimator, Lesson, Passage, centred, mean
from bilevel_rl.finite.estimators.likelihood_ratio import LikelihoodRatio
from bilevel_rl.finite.model import sampling, small
from bilevel_rl.finite.problem import BilevelProblem


class Gradients(eqx.Module):
    r"""The table and its level: $\nabla_x Q = G + m/(1-\gamma)$.

    Attributes:
        G: [S, A, d].
        level: [d] m; None where it is not centred.
    """

    G: Float[Array, "S A d"]
    level: Float[Array, " d"] | None

    @classmethod
    def zeros(cls, problem: BilevelProblem, x: Float[Array, " d"], centre: bool) -> Gradients:
        """Before anything is seen."""
        S, A = problem.mdp.n_states, problem.mdp.n_actions
        return cls(jnp.zeros((S, A, x.shape[0])), jnp.zeros(x.shape[0]) if centre else None)

    def taught(
        self, problem: BilevelProblem, x: Float[Array, " d"], lesson: Lesson, beta, *reads: Array
    ) -> tuple[Gradients, Float[Array, "B d"]]:
        r"""After a lesson, and the errors $\nabla r - m + \gamma\, E_\pi G(s',\cdot) - G(s,a)$.

        Where x moves the kernel $\nabla\log P_x(s'|s,a)\,\delta_Q$ joins $\nabla r$.

        Args:
            reads: what else was read from the table, before it changes (see `small.after`).
        """
        S, A, d = self.G.shape
        flat = self.G.reshape(S * A, d)
        mdp = problem.transitions(x)
        s, a, s_next = lesson.s, lesson.a, lesson.s_next
        ahead = jnp.einsum("ba,bad->bd", lesson.pi_next, small.rows(self.G, s_next))
        ahead = mdp.ongoing(ahead, s_next)
        slope = slopes(problem, x, lesson)
        if self.level is not None:
            slope = slope - self.level
        error = slope + mdp.discount * ahead - small.rows(flat, s * A + a)
        counted = error if lesson.weight is None else error * lesson.weight[:, None]
        each = sampling.visit_mean(s * A + a, S * A, small.after(counted, *reads))
        G = small.add_rows(flat, s * A + a, beta * each).reshape(S, A, d)
        level = None if self.level is None else self.level + beta * jnp.mean(counted, axis=0)
        return Gradients(G, level), error

    def difference(self, seen: Passage, rho: Float[Array, " N"], w) -> Float[Array, " d"]:
        r"""$E_{d^L} \sum_a (\pi - \pi^L)/\bar w\; G$, the states of $\pi$'s chains weighed by rho."""
        there = jnp.einsum("na,nad->nd", (seen.pi - seen.pi_l) / w, small.rows(self.G, seen.s))
        return mean(rho[:, None] * there, seen.mine)


def slopes(problem: BilevelProblem, x: Float[Array, " d"], lesson: Lesson) -> Float[Array, "B d"]:
    r"""$\nabla_x r_x(s,a)$ of each transition, with $\nabla\log P_x(s'|s,a)\,\delta_Q$ where x moves the kernel."""
    s, a = lesson.s, lesson.a
    slope = jax.vmap(jax.grad(lambda x, s, a: problem.reward_at(x, s[None], a[None])[0]), (None, 0, 0))(
        x, s, a
    )
    mdp = problem.transitions(x)
    if mdp.ends is not None:
        slope = jnp.where(mdp.ends[s][:, None], 0.0, slope)
    if not problem.moves_transitions:
        return slope
    # forwards: one pass over the kernel a dimension of x, where backwards it would be one a transition
    probability = lambda x: sampling.transition_probability(problem.sampled(x), s, a, lesson.s_next)  # noqa: E731
    p = probability(x)
    return slope + jax.jacfwd(probability)(x) * (lesson.error_Q / p)[:, None]


class GradientCritic(Estimator):
    r"""A table G [S, A, d] of $\nabla_x Q$; d tables, little noise, and the bias of what G has not learnt yet.

    $$(1-\gamma) \tfrac1{\bar w} \big(\nabla J(\pi) - \nabla J(\pi^L)\big)
    = E_{d^L} \textstyle\sum_a \frac{\pi - \pi^L}{\bar w}(a|s)\, G(s,a)$$

    Carries log rho [N], which turns states of $\pi$'s chains into those of $\pi^L$, and the table.
    """

    name: ClassVar[str] = "gradient_critic"

    @property
    def ratios(self) -> LikelihoodRatio:
        """How rho is known."""
        return LikelihoodRatio(self.clip, self.centre)

    def init(self, problem, x, chains):
        return self.ratios.init(problem, x, chains), Gradients.zeros(problem, x, self.centre)

    def step(self, problem, x, carry, seen, lesson, w, beta):
        log_ratio, gradients = carry
        log_ratio, before, after = self.ratios.advanced(log_ratio, seen, w)
        term = gradients.difference(seen, 1 - w * before, w)
        gradients, _ = gradients.taught(problem, x, lesson, beta, term)
        follows = centred(after, seen.mine) if self.centre else after
        return (log_ratio, gradients), Estimate(follows, 1 - w * after, None, (term,))
