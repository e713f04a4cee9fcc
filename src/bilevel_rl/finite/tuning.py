"""Choosing hyper-parameters: `plan` proposes the five sequences from scales measured on the problem."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite import oracles
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver
from bilevel_rl.loop import noise, precision
from bilevel_rl.loop.meter import iterations_for, samples_per_iteration
from bilevel_rl.loop.settings import with_options
from bilevel_rl.loop.tuning import SweepResult, sweep
from bilevel_rl.schedules import PowerDecay, TimeScales

__all__ = [
    "Proposal", "SweepResult", "iterations_for", "plan", "samples_per_iteration", "smoothness", "sweep",
    "utility_spread", "with_options",
]  # fmt: skip

HESSIAN_STATES = 2048  # ours: above this many states the smoothness is taken from theory alone
NOISE_SHARE = 0.25  # ours: random motion of x over a run, as a share of the width of x's set
STEP_SHARE = 0.02  # ours: largest single step of x, as a share of that width
TRAVEL = 2.0  # ours: how many widths x could travel at the pilot's mean gradient


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What `plan` measured and proposes.

    Attributes:
        scales: the proposed sequences.
        gradient: norm of the mean of x's direction in the pilot.
        noise: its standard deviation a step, all coordinates together.
        correlation: iterations over which successive directions are correlated.
        width: diameter of x's set, or the scale of x0 where it has none.
        smoothness: $L_V$, largest curvature of $J_\\tau$ in the logits seen at the pilot's policies.
        smoothness_theory: the bound $(8 r_{max} + \\tau(4 + 8 \\log A))/(1-\\gamma)^3$.
        bound_by: which of travel, noise and step sets zeta.
        broken: sentences on constraints that the proposal still breaks; none where the solver asks for no order.
        samples: transitions the pilot used.
    """

    scales: TimeScales
    gradient: float
    noise: float
    correlation: float
    width: float
    smoothness: float
    smoothness_theory: float
    bound_by: str
    broken: list[str]
    samples: int

    def rows(self) -> list[tuple[str, str, str]]:
        """(quantity, value, meaning), for printing."""
        rows = [(f"{name}_0", f"{s.initial:.4g} / (k+1)^{s.power:.3g}", meaning) for name, s, meaning in (
            ("zeta", self.scales.zeta, f"step of x; set by {self.bound_by}"),
            ("alpha", self.scales.alpha, "step of the actors"),
            ("beta", self.scales.beta, "step of the critics"),
            ("w", self.scales.w, "penalty"),
            ("tau", self.scales.tau, "entropy"),
        )]  # fmt: skip
        return [
            *rows,
            ("|E D|", f"{self.gradient:.4g}", "mean hyper-gradient of the pilot, at x0"),
            ("std D", f"{self.noise:.4g}", f"noise a step; correlated over {self.correlation:.1f} iterations"),
            ("width", f"{self.width:.4g}", "diameter of x's set"),
            ("L_V", f"{self.smoothness:.4g}", f"measured smoothness of J_tau; theory: at most {self.smoothness_theory:.3g}"),
        ]  # fmt: skip


@precision.double
def smoothness(problem: BilevelProblem, x: Float[Array, " d"], pi: Float[Array, "S A"], tau, iterations: int = 50):
    r"""Largest $|\nabla^2_\theta J_\tau|$ at a policy: power iteration on Hessian-vector products. $O(S^3)$ each."""

    def gradient(theta):
        return jax.grad(lambda t: oracles.lower_return(problem, x, jax.nn.softmax(t), tau))(theta)

    def body(v, _):
        hv = jax.jvp(gradient, (theta,), (v,))[1]
        norm = jnp.linalg.norm(hv)
        return hv / jnp.maximum(norm, 1e-300), norm

    theta = jnp.log(pi)
    start = jax.random.normal(jax.random.key(0), pi.shape)
    _, norms = jax.lax.scan(body, start / jnp.linalg.norm(start), None, length=iterations)
    return norms[-1]


@precision.double
def plan(
    problem: BilevelProblem, solver: Solver, *, iterations: int = 2000, pilot: int = 2000, seed: int = 0
) -> Proposal:
    r"""Propose the constants of the five sequences from a pilot at fixed x.

    tau is the problem's temperature, w one that moves the penalised follower's logits by at most about one, beta 1 and
    alpha what the measured smoothness allows ($\alpha_0/\tau_0 \le 1/L_V$, and at most $(1-\gamma)\beta_0$ where the
    powers agree). zeta is the smallest of three: what would carry x twice across its set in `iterations` at the pilot's
    mean gradient, what lets the noise move it by a quarter of the set, and what keeps single steps below a fiftieth.
    The powers are the solver's own.

    Args:
        problem: the problem.
        solver: a sampled solver with `scales`, and `direction` in its state.
        iterations: length of the run being planned.
        pilot: iterations of the pilot; its second half is measured.

    Raises:
        InvalidConfig: a solver without sequences to plan.
    """
    scales = getattr(solver, "scales", None)
    if not isinstance(scales, TimeScales) or not hasattr(solver, "hold"):
        raise InvalidConfig(
            message(f"plan({solver.name})", "a solver without the five sequences", "plan needs `scales` and `hold`",
                    "Plan for coupled_penalty or penalty_actor_critic, or use `bilevel-rl sweep`")
        )  # fmt: skip
    tau, gamma = float(problem.follower_temperature()), float(problem.mdp.discount)
    reward = problem.reward(problem.x0)
    r_max, A = float(jnp.max(jnp.abs(reward))), problem.mdp.n_actions
    theory = (8 * r_max + tau * (4 + 8 * np.log(A))) / (1 - gamma) ** 3
    curvature = theory
    if problem.mdp.n_states <= HESSIAN_STATES:
        best = oracles.lower_optimum(problem, problem.x0, tau).pi
        policies = (best, jnp.full_like(best, 1 / A))
        curvature = max(float(eqx.filter_jit(smoothness)(problem, problem.x0, pi, tau)) for pi in policies)

    # beta: critics that average what they see; alpha in the scale (1 - gamma) grad J
    beta = PowerDecay(1.0, scales.beta.power)
    limit = min(tau / curvature / (1 - gamma), (1 - gamma) if scales.alpha.power == scales.beta.power else 1.0)
    alpha = PowerDecay(limit, scales.alpha.power)
    spread = utility_spread(problem, tau)
    w = PowerDecay(tau / ((1 - gamma) * spread), scales.w.power)
    base = dataclasses.replace(
        solver, scales=TimeScales(scales.zeta, alpha, beta, w, PowerDecay(tau, scales.tau.power)), hold=float(10 * pilot)
    )
    directions, samples = _pilot(problem, base, jax.random.key(seed), pilot)
    kept = np.asarray(directions[pilot // 2 :])
    mean, centred = kept.mean(0), kept - kept.mean(0)
    noise = float(np.sqrt((centred**2).sum(1).mean()))
    correlation = _correlation_time(centred)
    box = problem.bounded_part()
    width = float(np.linalg.norm(box[1] - box[0])) if box is not None else float(max(1.0, np.linalg.norm(problem.x0)))
    decay = (np.arange(iterations) + 1.0) ** -scales.zeta.power
    limits = {
        "travel": TRAVEL * width / (np.linalg.norm(mean) * decay.sum() + 1e-12),
        "noise": NOISE_SHARE * width / (noise * np.sqrt(correlation * (decay**2).sum()) + 1e-12),
        "step": STEP_SHARE * width / (np.linalg.norm(mean) + noise + 1e-12),
    }
    bound_by = min(limits, key=lambda name: limits[name])
    proposal = dataclasses.replace(base.scales, zeta=PowerDecay(float(limits[bound_by]), scales.zeta.power))
    return Proposal(
        proposal, float(np.linalg.norm(mean)), noise, correlation, width, curvature, theory, bound_by,
        proposal.broken_constraints(gamma, curvature) if getattr(solver, "ordered", True) else [], int(samples),
    )  # fmt: skip


@precision.double
def utility_spread(problem: BilevelProblem, tau) -> float:
    r"""Largest $|\partial f/\partial\theta| / (d \pi)$ over reached states: how strongly f prefers one action to another."""
    x = problem.x0
    pi = oracles.lower_optimum(problem, x, tau).pi
    d = planning.visitation(problem.transitions(x), pi)
    slope = jax.grad(lambda t: problem.objective.value(x, jax.nn.softmax(t), problem))(jnp.log(pi))
    # stationarity in theta: the penalised logits move by w (1 - gamma) / tau times this
    reached = d > 1e-6
    preference = jnp.where(reached[:, None], jnp.abs(slope) / jnp.maximum(d[:, None] * pi, 1e-12), 0.0)
    return float(jnp.max(preference)) or 1.0


@eqx.filter_jit
def _pilot(problem: BilevelProblem, solver: Solver, key: Array, length: int):
    def body(state, k):
        drawn = noise.uniforms(solver.draws(problem), jax.random.fold_in(key, k))
        before = state.direction
        state = solver.step(problem, state, k, drawn)
        share = solver.momentum  # type: ignore[attr-defined]
        return state, (state.direction - share * before) / (1 - share)

    state, directions = jax.lax.scan(body, solver.init(problem, problem.x0, key), jnp.arange(length))
    return directions, state.samples


def _correlation_time(centred: np.ndarray) -> float:
    """Integrated autocorrelation time in iterations, at least 1 (initial positive sequence)."""
    n = len(centred)
    spectrum = np.fft.rfft(centred, 2 * n, axis=0)
    auto = np.fft.irfft((spectrum * spectrum.conj()).sum(1))[:n]
    if auto[0] <= 0:
        return 1.0
    auto = auto / auto[0]
    end = int(np.argmax(auto < 0.05)) or n
    return float(max(1.0, 2 * auto[:end].sum() - 1))
