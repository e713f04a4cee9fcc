r"""SoBiRL: the hyper-gradient of a soft-optimal follower with its linear system tracked by gradient descent.

$$\nabla\Phi \approx \nabla_x f + \tfrac1\tau\big(\nabla_x \langle r_x, \pi \circ \nabla_\pi f\rangle - \varphi^\top w\big),
\qquad w \leftarrow w - \xi A^\top (A w - b)$$
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite import implicit
from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.model import planning, sampling, small
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.loop import leader
from bilevel_rl.loop.noise import Draws
from bilevel_rl.schedules import TEMPERATURE


class SobirlState(State):
    """What is carried from one x to the next.

    Attributes:
        Q: [S, A] the follower's value, entropy-regularised.
        w: [S] tracked solution of $A w = b$; None in the sampled form.
        s: [N] where the chains are; None in the model-based form.
    """

    Q: Float[Array, "S A"]
    w: Float[Array, " S"] | None
    s: Int[Array, " N"] | None


class SoBiRL(Solver):
    r"""Soft bi-level RL: `form="model"` is M-SoBiRL, which uses the model and no samples; `form="sampled"` is SoBiRL.

    *Model.* With $A = (I - \gamma P_\pi)^\top$, $b = \sum_a \pi\,\partial_\pi f - \gamma P^\top (\pi \circ \partial_\pi f)$
    and $\varphi = \nabla_x \sum_a \pi\,(r_x + \gamma P_x V)$, an iteration makes `sweeps` sweeps of soft value iteration,
    `inner` gradient steps on $|A w - b|^2/2$ and one step of x. As both grow the direction becomes the exact
    hyper-gradient. Supports kernels that depend on x (ours; the paper moves the reward only), and every objective.

    *Sampled.* For objectives that are sampled from trajectories, such as preferences. A soft Q table learns from N chains
    and one random action beside each; the direction is

    $$g_x + \tfrac1\tau \sum_{s,a} g_\theta(s,a)\, \nabla_x r_x(s,a),$$

    the paper's surrogate $\sum_t \tfrac1\tau (r_x(s_t,a_t) - E_\pi r_x)$ under the score function: the response of the
    follower's *future* is left out, so it is biased unless $\gamma = 0$.

    Args:
        step_size: zeta, constant.
        tau: temperature, in units of reward.
        rate: $\xi$ of w as a share of $1/(\|A\|_1 \|A\|_\infty)$; below 2 it can't diverge (ours: the paper's is absolute).
        beta: step of the sampled form's critic.
        hold: iterations for which x stays while Q and w catch up; 0 is the paper's.
        form: `"model"` or `"sampled"`.
        centre: whether $\partial_\pi f$ loses its mean under pi in each state first. The solution for x is the same, b is
            smaller, and w has less far to go (ours; False is the paper's).
        sweeps: of soft value iteration an iteration; the paper's ten.
        inner: gradient steps of w an iteration.
        chains: N of the sampled form; 2 N transitions an iteration, and those of the objective.

    References:
        Yang, Gao, Yuan 2025 (SoBiRL, M-SoBiRL). The paper's code forms $\varphi$ [S, d]; here $\varphi^\top w$ is one
        reverse derivative. Cost O((sweeps + inner) S A K + d), or O(N A + d) and the objective's sample.
    """

    step_size: float = 0.1
    tau: float = TEMPERATURE
    rate: float = 1.0
    beta: float = 0.3
    hold: float = 0.0
    form: Literal["model", "sampled"] = eqx.field(static=True, default="model")
    centre: bool = eqx.field(static=True, default=True)
    sweeps: int = eqx.field(static=True, default=10)
    inner: int = eqx.field(static=True, default=10)
    chains: int = eqx.field(static=True, default=16)

    name: ClassVar[str] = "sobirl"
    references: ClassVar[tuple[str, ...]] = ("yang2025sobirl",)

    @property
    def requires(self) -> tuple[str, ...]:
        return () if self.form == "model" else ("sampled objective", "fixed transitions")

    def check(self, problem: BilevelProblem) -> None:
        check_fields(
            self.name,
            ("form", self.form, self.form in ("model", "sampled"), "it must be 'model' or 'sampled'"),
            ("step_size", self.step_size, self.step_size > 0, "it must be above 0"),
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("rate", self.rate, 0 < self.rate < 2, "it must be in (0, 2)"),
            ("beta", self.beta, 0 < self.beta <= 1, "it must be in (0, 1]"),
            leader.held(self.hold),
            ("sweeps", self.sweeps, self.sweeps >= 1, "it must be at least 1"),
            ("inner", self.inner, self.inner >= 1, "it must be at least 1"),
            ("chains", self.chains, self.chains >= 1, "it must be at least 1"),
        )

    def draws(self, problem: BilevelProblem) -> Draws:
        return 0 if self.form == "model" else {"chains": (5, self.chains), "upper": problem.objective.draws(problem)}

    def init(self, problem: BilevelProblem, x0, key) -> SobirlState:
        S, A, none = problem.mdp.n_states, problem.mdp.n_actions, jnp.zeros((), int)
        if self.form == "model":
            return SobirlState(x0, none, jnp.zeros((S, A)), jnp.zeros(S), None)
        s = sampling.start_state(problem.mdp, jax.random.uniform(key, (self.chains,)))
        return SobirlState(x0, none, jnp.zeros((S, A)), None, s)

    def step(self, problem: BilevelProblem, state: SobirlState, k, noise) -> SobirlState:
        return self._planned(problem, state, k) if self.form == "model" else self._sampled(problem, state, k, noise)

    def _planned(self, problem: BilevelProblem, state: SobirlState, k) -> SobirlState:
        x, mdp = state.x, problem.transitions(state.x)
        # ten sweeps of soft value iteration
        Q = rollouts.soft_vi(problem, x, state.Q, self.tau, self.sweeps)
        pi, V = planning.soft_policy(Q, self.tau), mdp.ongoing(planning.soft_value(Q, self.tau))
        grad_x, grad_pi = jax.grad(lambda x, pi: problem.objective.value(x, pi, problem), (0, 1))(x, pi)

        # w <- w - xi A'(A w - b),  b = sum_a pi grad_pi f - gamma P'(pi grad_pi f)
        if self.centre:
            grad_pi = grad_pi - jnp.sum(pi * grad_pi, -1, keepdims=True)
        weighed = pi * grad_pi
        b = mdp.ongoing(jnp.sum(weighed, -1)) - implicit.source(mdp, weighed)

        # |A|^2 is at most the product of its largest absolute row and column sums
        rate = self.rate / ((1 + mdp.discount) * (1 + mdp.discount * jnp.max(mdp.flow(pi))))

        apply, back = implicit.operators(mdp, pi)

        def descend(w, _):
            return w - rate * back(apply(w) - b), None

        assert state.w is not None, "the form that uses the model tracks it"
        w, _ = jax.lax.scan(descend, state.w, None, length=self.inner)
        # grad_x f + (grad_x <r, pi grad_pi f> - phi' w) / tau
        g = grad_x + implicit.contract(problem, x, (weighed - w[:, None] * pi) / self.tau, V)
        return SobirlState(leader.descend(problem, x, g, k, self.step_size, self.hold), state.samples, Q, w, None)

    def _sampled(self, problem: BilevelProblem, state: SobirlState, k, noise) -> SobirlState:
        x, mdp, N, A = state.x, problem.transitions(state.x), self.chains, state.Q.shape[1]
        u = noise["chains"]
        # one transition along each chain, and one of a random action beside it
        s = state.s
        assert s is not None, "the sampled form keeps chains"
        a = sampling.choose(planning.soft_policy(small.rows(state.Q, s), self.tau), u[0])
        s_next = sampling.next_state(mdp, s, a, u[1])
        onward, _ = sampling.continue_chain(mdp, s_next, u[2])
        other = jnp.minimum((u[3] * A).astype(a.dtype), A - 1)
        aside = sampling.next_state(mdp, s, other, u[4])
        batch = tuple(map(jnp.concatenate, ((s, s), (a, other), (s_next, aside))))
        Q = rollouts.soft_q_learning(
            mdp, state.Q, *batch, problem.reward_at(x, *batch[:2]), self.tau, self.beta, passes=1
        )
        # g_x + (1/tau) sum g_theta grad_x r
        xi = problem.objective.sample(x, planning.soft_policy(Q, self.tau), problem, noise["upper"])
        g = xi.grad_x + jax.grad(lambda x: jnp.sum(xi.grad_theta * problem.reward(x)))(x) / self.tau
        moved = leader.descend(problem, x, g, k, self.step_size, self.hold)
        return SobirlState(moved, state.samples + 2 * N + xi.transitions, Q, None, onward)

    def tracked(self, problem, state, k):
        return planning.soft_policy(state.Q, self.tau)
