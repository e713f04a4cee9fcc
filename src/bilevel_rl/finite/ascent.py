r"""Policies as logits, moved by natural-gradient ascent on $J_\tau(x, \pi) - w f(x, \pi)$, with the model.

$$\theta \leftarrow \theta + \alpha\, F^{-1} \nabla_\theta (J_\tau - w f), \qquad
F^{-1}\nabla_\theta J_\tau = Q - \tau\log\pi - V .$$

F is the Fisher matrix $d(s)\,\mathrm{diag}\,\pi(\cdot|s)/(1-\gamma)$, up to constants of a state. For $w = 0$ this is policy
mirror descent in the entropy-regularised MDP, and soft policy iteration at $\alpha = 1/\tau$.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem

RARE = 1e-12  # ours: states visited less than this feel nothing of f


def natural_gradient(problem: BilevelProblem, x, theta: Float[Array, "S A"], tau, w=0.0) -> Float[Array, "S A"]:
    r"""$F^{-1}\nabla_\theta(J_\tau - w f)$ at $\pi = \mathrm{softmax}(\theta)$. One or two linear solves.

    Where f is linear in the visitation it is the advantage of the reward $r_x + (1-\gamma) w u_x$.
    """
    mdp, objective = problem.transitions(x), problem.objective
    pi, log_pi = jax.nn.softmax(theta), jax.nn.log_softmax(theta)
    reward = problem.penalised_reward(x, w) if objective.linear else problem.reward(x)
    V = planning.policy_value(mdp, reward, pi, tau)
    entropy = log_pi if mdp.ends is None else jnp.where(mdp.ends[:, None], 0.0, log_pi)
    A = planning.action_value(mdp, reward, V) - tau * entropy - V[:, None]
    if objective.linear:
        return A
    slope = jax.grad(lambda t: objective.value(x, jax.nn.softmax(t), problem))(theta)
    d = planning.visitation(mdp, pi)[:, None]
    return A - w * (1 - mdp.discount) * jnp.where(d > RARE, slope / jnp.maximum(d * pi, RARE), 0.0)


def ascend(problem: BilevelProblem, x, theta: Float[Array, "S A"], tau, alpha, w=0.0, steps: int = 1):
    """Steps of natural-gradient ascent; [S, A] logits, normalised."""
    step = lambda t, _: (jax.nn.log_softmax(t + alpha * natural_gradient(problem, x, t, tau, w)), None)  # noqa: E731
    return jax.lax.scan(step, theta, None, length=steps)[0]
