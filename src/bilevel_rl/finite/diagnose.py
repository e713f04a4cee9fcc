"""Evidence for the theory's assumptions on the instance at hand: gradient dominance, curvature, biases, rates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl import metrics as M
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite import oracles
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, solve
from bilevel_rl.loop import precision
from bilevel_rl.statistics import Interval, log_log_slope, slope_text

HESSIAN_ENTRIES = 1024  # ours: a dense Hessian of more than this many logits is refused
THEORY_RATE = {"attenuating": -1 / 10, "constant": -1 / 3}  # arXiv 2601.16399: |grad Phi|^2 against samples


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    r"""What `diagnose` found.

    Attributes:
        suboptimality: [T] $J_\tau(x, \pi^*) - J_\tau(x, \pi_t)$ along exact policy-gradient ascent from the uniform policy.
        gradient_squared: [T] $|\nabla_\theta J_\tau|^2$ there.
        dominance: smallest ratio of the two seen, the local Polyak-Lojasiewicz constant; above 0 supports the assumption.
        singular_value: smallest non-null singular value of $\nabla^2_\theta J_\tau$ at $\pi^*_\tau(x)$; None when too large.
        null_dimension: dimension of its null space; S by theory (adding a constant to a state's logits).
        w, w_bias: penalty constants, and the relative bias of the penalty hyper-gradient.
        w_slope: log-log slope of the bias; 1 by theory.
        tau, tau_bias: temperatures, and $|\Phi_\tau(x) - \Phi(x)|$.
        tau_slope: its log-log slope.
        samples, gradient_norm_squared: mean over runs of the exact $|\nabla\Phi|^2$ along the solver's runs, running
            minimum excluded; None without a solver.
        rate: its log-log slope over the second half of the records; None without a solver.
        theory_rate: what the paper proves for the solver's schedule.
    """

    suboptimality: np.ndarray
    gradient_squared: np.ndarray
    dominance: float
    singular_value: float | None
    null_dimension: int | None
    w: np.ndarray
    w_bias: np.ndarray
    w_slope: Interval
    tau: np.ndarray
    tau_bias: np.ndarray
    tau_slope: Interval
    samples: np.ndarray | None = None
    gradient_norm_squared: np.ndarray | None = None
    rate: Interval | None = None
    theory_rate: float | None = None

    def rows(self) -> list[tuple[str, str, str]]:
        """(quantity, value, what the theory asks), for printing."""
        rows = [
            ("gradient dominance", f"{self.dominance:.3g}", "above 0 along the run"),
            ("smallest singular value", _shown(self.singular_value), "above 0 outside the null space"),
            ("null space", str(self.null_dimension), "one dimension a state"),
            ("bias slope in w", slope_text(self.w_slope), "1"),
            ("bias slope in tau", slope_text(self.tau_slope), "reported, not predicted"),
        ]  # fmt: skip
        if self.rate is not None:
            rows.append(("rate of |grad Phi|^2", slope_text(self.rate), f"{self.theory_rate:.3g} or faster"))
        return rows

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a results file."""
        return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in dataclasses.asdict(self).items()}


def _shown(value: float | None) -> str:
    if value is None:
        return "not computed: too many logits"
    return f"{value:.3g}" if value > 1e-13 else "below rounding (1e-13): degenerate in 64 bit"


@precision.double
def diagnose(
    problem: BilevelProblem,
    solver: Solver | None = None,
    *,
    x: Float[Array, " d"] | None = None,
    iterations: int = 2000,
    runs: int = 20,
    seed: int = 0,
    ascent: int = 400,
    w: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03, 0.01),
    tau: tuple[float, ...] = (0.2, 0.1, 0.05, 0.025),
) -> Diagnosis:
    """Measure the assumptions at x, and the convergence rate of a solver's runs.

    Args:
        x: [d] where to look; the problem's x0 when None.
        solver: whose runs to rate; None skips the rate.
        ascent: steps of exact policy gradient along which dominance is measured.
        w, tau: values at which the biases are measured.

    Example:
        >>> from bilevel_rl.finite.problems.goal_placement import GoalPlacement
        >>> abs(diagnose(GoalPlacement(rows=3, columns=3), ascent=20).w_slope.value - 1) < 0.05
        True
    """
    if len(w) < 2 or len(tau) < 2 or min(*w, *tau) <= 0:
        raise InvalidConfig(
            message("diagnose", f"w={w}, tau={tau}", "at least two values above 0 of each are needed", "Give more values")
        )
    problem = jax.tree.map(jnp.asarray, problem)
    x = problem.x0 if x is None else jnp.asarray(x, float)
    at = problem.temperature()
    gap, squared = eqx.filter_jit(_ascend)(problem, x, at, ascent)
    keep = np.asarray(gap) > 1e-10
    ratio = np.asarray(squared)[keep] / np.asarray(gap)[keep]
    singular, null = _curvature(problem, x, at)
    exact = oracles.hyper_gradient(problem, x, at)
    biased = eqx.filter_jit(lambda w: oracles.penalty_hyper_gradient(problem, x, w, at))
    w_bias = np.array([float(jnp.linalg.norm(biased(jnp.asarray(v)) - exact) / jnp.linalg.norm(exact)) for v in w])
    limit = oracles.hyper_objective(problem, x, 0)
    tau_bias = np.array([abs(float(oracles.hyper_objective(problem, x, jnp.asarray(t)) - limit)) for t in tau])
    found = Diagnosis(
        np.asarray(gap), np.asarray(squared), float(ratio.min()) if ratio.size else float("nan"), singular, null,
        np.asarray(w), w_bias, _slope(w, w_bias),
        np.asarray(tau), tau_bias, _slope(tau, tau_bias),
    )  # fmt: skip
    return found if solver is None else dataclasses.replace(found, **_rate(problem, solver, iterations, runs, seed))


def _slope(at: tuple[float, ...], bias: np.ndarray) -> Interval:
    """Log-log slope over the values at which a bias was found; NaN where fewer than two were."""
    known = np.isfinite(bias)
    if known.sum() < 2:
        return Interval(math.nan, math.nan, math.nan)
    return log_log_slope(np.asarray(at)[known], np.maximum(bias[known], 1e-300))


def _ascend(problem: BilevelProblem, x, tau, steps: int) -> tuple[Array, Array]:
    """Natural-scale gradient ascent in the logits; returns suboptimality and squared gradient norm at each step."""
    best = jnp.dot(problem.mdp.start, oracles.lower_optimum(problem, x, tau).V)

    def body(theta, _):
        pi = jax.nn.softmax(theta)
        gradient = oracles.policy_gradient(problem, x, pi, tau)
        gap = best - oracles.lower_return(problem, x, pi, tau)
        # normalised by its largest entry: plain ascent would need thousands of steps on the far plateau
        return theta + 0.5 * gradient / jnp.max(jnp.abs(gradient)), (gap, jnp.sum(gradient**2))

    _, (gap, squared) = jax.lax.scan(body, problem.mdp.first_table(), None, length=steps)
    return gap, squared


def _curvature(problem: BilevelProblem, x, tau) -> tuple[float | None, int | None]:
    S, A = problem.mdp.n_states, problem.mdp.n_actions
    if S * A > HESSIAN_ENTRIES or problem.mdp.allowed is not None:
        return None, None

    def value(theta):
        return oracles.lower_return(problem, x, jax.nn.softmax(theta.reshape(S, A)), tau)

    theta = jnp.log(oracles.lower_optimum(problem, x, tau).pi).ravel()
    values = np.linalg.svd(np.asarray(jax.jit(jax.hessian(value))(theta)), compute_uv=False)
    null = S  # theory: adding a constant to the logits of a state changes nothing
    return float(values[S * A - null - 1]), int((values < 1e-10 * values[0]).sum())


def _rate(problem: BilevelProblem, solver: Solver, iterations: int, runs: int, seed: int) -> dict[str, Any]:
    trace = solve(problem, solver, iterations=iterations, runs=runs, seed=seed)
    squared = np.mean(trace[M.GRADIENT_NORM.key] ** 2, axis=0)
    samples = trace[M.SAMPLES.key].mean(0) if trace[M.SAMPLES.key].any() else trace[M.ITERATION.key].mean(0)
    late = slice(len(squared) // 2, None)
    scales = getattr(solver, "scales", None)
    attenuates = scales is not None and float(scales.tau.power) > 0
    return {
        "samples": samples, "gradient_norm_squared": squared, "rate": log_log_slope(samples[late], squared[late]),
        "theory_rate": THEORY_RATE["attenuating" if attenuates else "constant"],
    }  # fmt: skip
