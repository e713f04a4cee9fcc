r"""What several starts are worth by a model of what all of them have seen.

$$\hat P(s'|s,a) = \frac{n(s,a,s')}{n(s,a)}, \qquad \hat\rho(s) = \frac{n_0(s)}{n_0}, \qquad
\hat f_i = f\big(x_i, \mathrm{argmax}_\pi \hat J_\tau(x_i, \pi)\big)$$

A critic that lags behind x tells the value of what its follower does now, and not of the answer to x. The kernel is the same
for every start, so all transitions are counted together, and planning with the counts gives the answer to each x. What was
never tried is not allowed, and a state from which nothing was tried is an end (`learn.learnt_model`, which compares the
starts of a search, does the same between its rounds).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.finite.learn.counts import Counts
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem

LARGEST = 2**20  # ours: as many counts as fit beside the tables: S A S of them, 8 MB a run
VISITS = 10.0  # ours: a model is believed where every pair of state and action has been seen so often on average
OFTEN = 4.0  # ours: plans made while the number of iterations doubles
LOST = 1e100  # above any value, and a finite number: a run with infinite ones is stopped


class Judge(eqx.Module):
    """Counts of all transitions, and the best x that they have shown.

    Attributes:
        seen: [S A S] how often each transition was drawn.
        begins: [S] how often an episode began in s.
        x: [d] the x of lowest value by the newest model, of all that starts have had when plans were made.
        each: how many transitions an iteration draws.
    """

    seen: Float[Array, " SAS"]
    begins: Float[Array, " S"]
    x: Float[Array, " d"]
    each: int = eqx.field(static=True)

    @classmethod
    def begin(cls, problem: BilevelProblem, x0: Float[Array, " d"], firsts: Int[Array, " B"], each: int) -> Judge:
        """Before any transition."""
        S, A = problem.mdp.n_states, problem.mdp.n_actions
        return cls(jnp.zeros(S * A * S), jnp.zeros(S).at[firsts].add(1.0), x0, each)

    def saw(self, batch: Int[Array, "3 B"], restart: Bool[Array, " N"], onward: Int[Array, " N"]) -> Judge:
        """With new transitions, and with the first states of episodes that began.

        Args:
            batch: s, a, s'.
            restart, onward: of the last step along each chain.
        """
        s, a, s_next = batch.astype(int)
        S = self.begins.shape[0]
        A = self.seen.shape[0] // S**2
        seen = self.seen.at[(s * A + a) * S + s_next].add(1.0)
        begins = self.begins.at[onward].add(restart.astype(float))
        return eqx.tree_at(lambda j: (j.seen, j.begins), self, (seen, begins))

    def heard(
        self, problem: BilevelProblem, x: Float[Array, "M d"], alive: Bool[Array, " M"], now: Float[Array, " M"], k, tau,
        every: float,
    ) -> tuple[Judge, Float[Array, " M"]]:  # fmt: skip
        """After iteration k: plans where it is time for some, at `every` times a power of the fourth root of two.

        Args:
            x: where the starts are; alive: which of them go on; now: what they were last worth.
            tau: temperature of the answers.

        Returns:
            The judge, and what the starts are worth.
        """
        steps = jnp.round(OFTEN * jnp.log2((k + 1) / every))
        known = k + 1 >= VISITS * problem.mdp.n_states * problem.mdp.n_actions / self.each
        due = (steps >= 0) & known & (k + 1 == jnp.round(every * 2.0 ** (steps / OFTEN)))

        def plan():
            f = self.values(problem, jnp.concatenate([x, self.x[None]]), tau)
            best = jnp.argmin(jnp.where(alive, f[:-1], jnp.inf))
            return jnp.where(f[-1] < f[best], self.x, x[best]), f[:-1]

        # every run of a batch plans in the same iterations: a condition on k alone stays one when runs are mapped over
        best, f = jax.lax.cond(due, plan, lambda: (self.x, now))
        return eqx.tree_at(lambda j: j.x, self, best), f

    def values(self, problem: BilevelProblem, x: Float[Array, "M d"], tau) -> Float[Array, " M"]:
        """f of the planned answer to each x; `LOST` where planning fails."""
        mdp, S, A = problem.mdp, problem.mdp.n_states, problem.mdp.n_actions
        none = S * A * S
        key = jnp.where(self.seen > 0, jnp.arange(none), none)
        order = jnp.argsort(key)  # empty rows last
        counts = Counts(key[order], self.seen[order], None, S, A)
        model, tried = counts.model(mdp, self.begins), counts.tried > 0
        stuck = ~jnp.any(tried, axis=1)
        ends = stuck if mdp.ends is None else stuck | mdp.ends
        model = eqx.tree_at(lambda m: m.ends, model, ends, is_leaf=lambda leaf: leaf is None)
        allowed = jnp.where(tried | ends[:, None], 0.0, -jnp.inf) + mdp.mask

        def one(x):
            pi = planning.soft_optimal(model, problem.reward(x), tau, allowed=allowed).pi
            d = jnp.where(ends, 0.0, planning.visitation(model, pi))
            return problem.objective.visited_value(x, d[:, None] * pi)

        f = jax.lax.map(one, x)
        return jnp.where(jnp.isfinite(f), f, LOST)


def suits(problem: BilevelProblem) -> bool:
    """Whether transitions of all starts are one sample of one small kernel, along which f can be computed."""
    mdp = problem.mdp
    fixed = not (problem.moves_transitions or problem.moves_start)
    return fixed and problem.objective.linear and mdp.n_states**2 * mdp.n_actions <= LARGEST
