"""Every metric once: its key in run folders, label, unit, and which direction is better."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """A recorded quantity. `label` is plain text with Unicode maths, as figures and tables print it."""

    key: str
    label: str
    unit: str
    better: Literal["up", "down", "none"]
    meaning: str


# Finite problems: all of these are computed by oracles, never by the solver they grade.
SAMPLES = Metric("samples", "samples", "transitions", "none", "Environment transitions used so far")
ITERATION = Metric("iteration", "iteration", "1", "none", "Solver iterations so far")
OBJECTIVE = Metric("objective", "Φ_τ(x)", "objective", "down", "Exact hyper-objective f(x, π*_τ(x)) at the current x")
GAP = Metric("gap", "Φ_τ(x) − Φ*", "objective", "down", "Exact hyper-objective less the best known value")
GRADIENT_NORM = Metric("gradient_norm", "|∇Φ_τ(x)|", "objective / unit of x", "down", "Norm of the exact hyper-gradient")
GRADIENT_ERROR = Metric(
    "gradient_error", "relative hyper-gradient error", "1", "down",
    "Distance of the solver's own mean hyper-gradient, at its current followers, from the exact one, relative",
)  # fmt: skip
LOWER_GAP = Metric(
    "lower_gap", "J_τ(x, π*) − J_τ(x, π)", "reward", "down", "Suboptimality of the tracked follower, discounted sum"
)
DISTANCE = Metric("distance", "|x − x*|", "unit of x", "down", "Distance of x from the best known x")
ZETA = Metric("zeta", "ζ_k", "1", "none", "Step of x")
ALPHA = Metric("alpha", "α_k", "1", "none", "Step of the actors")
BETA = Metric("beta", "β_k", "1", "none", "Step of the critics")
W = Metric("w", "w_k", "reward / objective", "none", "Penalty constant: smaller is a stronger penalty")
TAU = Metric("tau", "τ_k", "reward", "none", "Entropy temperature")

FINITE = (
    SAMPLES, ITERATION, OBJECTIVE, GAP, GRADIENT_NORM, GRADIENT_ERROR, LOWER_GAP, DISTANCE, ZETA, ALPHA, BETA, W, TAU,
)  # fmt: skip

# Language models.
LLM: tuple[Metric, ...] = ()

ALL = FINITE + LLM
BY_KEY = {metric.key: metric for metric in ALL}
