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
SAMPLES = Metric(
    "samples", "samples", "transitions", "none", "Environment transitions (a language model's tokens) used so far"
)
ITERATION = Metric("iteration", "iteration", "1", "none", "Solver iterations so far")
OBJECTIVE = Metric(
    "objective", "Φ_τ(x)", "objective", "down", "Exact hyper-objective f(x, π*_τ(x)) at the current x"
)
REGULARISED = Metric(
    "regularised", "Φ_τ(x) at the problem's τ", "objective", "down",
    "Exact regularised hyper-objective, beside an unregularised grade",
)  # fmt: skip
GAP = Metric("gap", "Φ_τ(x) − Φ*", "objective", "down", "Exact hyper-objective less the best known value")
FOLLOWER_VALUE = Metric(
    "follower_value", "J_τ(x, π*)", "reward", "up", "What the follower's best answer to the current x is worth to it"
)
GRADIENT_NORM = Metric(
    "gradient_norm", "|∇Φ_τ(x)|", "objective / unit of x", "down", "Norm of the exact hyper-gradient"
)
GRADIENT_ERROR = Metric(
    "gradient_error", "hyper-gradient error", "objective / unit of x", "down",
    "Distance of the solver's mean hyper-gradient, at its current followers, from the exact one",
)  # fmt: skip
LOWER_GAP = Metric(
    "lower_gap",
    "J_τ(x, π*) − J_τ(x, π)",
    "reward",
    "down",
    "Suboptimality of the tracked follower, discounted sum",
)
POLICY_GRADIENT = Metric(
    "policy_gradient", "|∇_θ J_τ(x, π)|²", "reward²", "down",
    "Squared norm of the exact policy gradient at the tracked follower; against lower_gap it shows gradient dominance",
)  # fmt: skip
DISTANCE = Metric("distance", "|x − x*|", "unit of x", "down", "Distance of x from the best known x")
ZETA = Metric("zeta", "ζ_k", "1", "none", "Step of x")
ALPHA = Metric("alpha", "α_k", "1", "none", "Step of the actors")
BETA = Metric("beta", "β_k", "1", "none", "Step of the critics")
W = Metric("w", "w_k", "reward / objective", "none", "Penalty constant: smaller is a stronger penalty")
TAU = Metric("tau", "τ_k", "reward", "none", "Entropy temperature")

FINITE = (
    SAMPLES, ITERATION, OBJECTIVE, REGULARISED, GAP, FOLLOWER_VALUE, GRADIENT_NORM, GRADIENT_ERROR, LOWER_GAP,
    POLICY_GRADIENT, DISTANCE, ZETA, ALPHA, BETA, W, TAU,
)  # fmt: skip

# Language models: one line an iteration, estimated on that iteration's rollouts of theta.
LABELS = Metric(
    "labels", "judge labels", "labels", "none", "Pairs judged, or gold scores asked for by the objective"
)
GOLD = Metric("gold", "gold score", "score", "up", "Mean gold score of what π_θ writes")
LEARNED_REWARD = Metric("learned_reward", "r_x(y)", "reward", "up", "Mean learned reward of what π_θ writes")
UPPER = Metric("upper", "f(x, π^L)", "objective", "down", "Sampled upper objective at the penalised policy")
KL = Metric(
    "kl", "KL(π_θ ‖ π_ref)", "nats a completion", "none", "Exact over the vocabulary, summed over tokens"
)
ENTROPY = Metric("entropy", "entropy", "nats a token", "none", "Mean entropy of π_θ's next-token law")
LENGTH = Metric("length", "completion length", "tokens", "none", "Mean length, end token included")
TRUNCATED = Metric("truncated", "truncated share", "1", "down", "Completions that reached the length limit")
POLICY_GAP = Metric(
    "policy_gap", "J_τ(π_θ) − J_τ(π^L)", "reward", "none", "Sampled gap between the two policies"
)
DIVERGENCE = Metric(
    "divergence", "KL(π_θ ‖ π^L)", "nats a completion", "none", "k3 estimate on π_θ's completions"
)
COST = Metric("cost", "E[cost]", "unit of the cost", "down", "Of the second judge, on the policy's completions")
MULTIPLIER = Metric("multiplier", "λ", "objective / cost", "none", "Price of the constraint, a part of x")
SAMPLER_GAP = Metric(
    "sampler_gap", "|log π - log sampler|", "nats a token", "down", "How far the engine that samples is from the policy"
)
SAMPLER_CLIPPED = Metric("sampler_clipped", "truncated ratios", "1", "down", "Share of tokens whose ratio is cut")
HYPER = Metric("hyper", "|D|", "objective / unit of x", "none", "Norm of the sampled hyper-gradient")
HYPER_UPPER = Metric("hyper_upper", "|∇_x f|", "objective / unit of x", "none", "Norm of its direct part")
HYPER_PENALTY = Metric(
    "hyper_penalty", "|(E_π − E_πL)[∇_x r]|/w", "objective / unit of x", "none", "Norm of its penalty part"
)
EFFECTIVE = Metric(
    "ess", "effective sample size", "1", "up", "Of the importance ratios, as a share of the batch"
)
RATIO_CLIPPED = Metric(
    "ratio_clipped", "clipped ratios", "1", "down", "Share of importance ratios at their bound"
)
GRADIENT_POLICY = Metric("gradient_policy", "|grad θ|", "1", "none", "Gradient norm of θ before clipping")
GRADIENT_POLICY_L = Metric(
    "gradient_policy_l", "|grad θ^L|", "1", "none", "Gradient norm of θ^L before clipping"
)
GRADIENT_CRITIC = Metric("gradient_critic", "|grad V|", "1", "none", "Gradient norm of V before clipping")
GRADIENT_CRITIC_L = Metric(
    "gradient_critic_l", "|grad V^L|", "1", "none", "Gradient norm of V^L before clipping"
)
TOKENS_PER_SECOND = Metric(
    "tokens_per_second", "tokens a second", "tokens / s", "up", "Generated tokens a second"
)
SECONDS = Metric("seconds", "seconds", "s", "down", "Wall time of the iteration")
MEMORY = Metric("memory", "peak memory", "GiB", "down", "Peak of this process so far")

LLM = (
    SAMPLES, ITERATION, LABELS, GOLD, LEARNED_REWARD, UPPER, KL, ENTROPY, LENGTH, TRUNCATED, POLICY_GAP, DIVERGENCE, HYPER,
    HYPER_UPPER, HYPER_PENALTY, EFFECTIVE, RATIO_CLIPPED, COST, MULTIPLIER, SAMPLER_GAP, SAMPLER_CLIPPED, GRADIENT_POLICY,
    GRADIENT_POLICY_L, GRADIENT_CRITIC,
    GRADIENT_CRITIC_L, ZETA, ALPHA, BETA, W, TAU, TOKENS_PER_SECOND, SECONDS, MEMORY,
)  # fmt: skip

# Neural followers in environments: what a run knows of itself; the objective is graded exactly where it is known.
OUTCOME = Metric(
    "outcome", "leader's outcome", "utility a step", "up", "Mean of what the leader got in the last blocks of iterations"
)
BEST_OUTCOME = Metric("best_outcome", "best outcome", "utility a step", "up", "Best mean of as many blocks so far")
FOLLOWER_OUTCOME = Metric(
    "follower_outcome", "follower's reward", "reward a step", "up", "Mean of what the present x pays for the newest steps"
)
GATE = Metric("gate", "gate κ", "1", "none", "Share of x's step that the gate on the follower's lag let through")
SPEED = Metric("speed", "answer's speed", "nats", "none", "How far the follower's answer moves while its critics forget")
RESTARTS = Metric("restarts", "restarts", "1", "down", "Times x went back to its best on evidence that it had strayed")

CONTROL = (
    SAMPLES, ITERATION, OBJECTIVE, GAP, GRADIENT_NORM, DISTANCE, OUTCOME, BEST_OUTCOME, FOLLOWER_OUTCOME, GATE, SPEED,
    RESTARTS,
)  # fmt: skip

ALL = FINITE + tuple(metric for metric in LLM if metric not in FINITE)
ALL += tuple(metric for metric in CONTROL if metric not in ALL)
BY_KEY = {metric.key: metric for metric in ALL}
