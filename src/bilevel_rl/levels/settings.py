"""What the two levels are told: the method's constants, its budgets and its schedules."""

from __future__ import annotations

import dataclasses

from bilevel_rl.schedules import TimeScales


@dataclasses.dataclass(frozen=True)
class Settings:
    """Constants of a run on two levels; an engine has its own besides.

    Attributes:
        method: bilevel, nested, partial_sgd, fixed_reward, finite_difference or plain.
        estimator: tilted, shared or paired: how bilevel and nested estimate the penalty's gradient.
        seed: of every random number.
        steps: iterations of the run.
        batch: rows of one policy in an iteration, of all processes.
        group: rows that answer one start.
        micro_batch: rows of a forward pass; 0: all at once.
        one_pass: whether the graph of scoring may be kept for learning (False: an adapter is switched in between).
        epochs: steps on one batch.
        regularizer: kl or entropy, what tau weighs.
        kl_estimator: exact, k1 or k3.
        ratio, ratio_clip: of the shared estimator (`estimators.importance`).
        coupling: share of theta^L - theta taken away after each step.
        x_penalty: lambda of the term lambda |x|^2 of f.
        pairs_per_step, label_budget, replay_pairs: labels of an iteration, of the run (0: no limit), used again.
        optimizer: adam or sgd; sgd_x: Adam for policies and critics, plain steps for x.
        clip_norm, x_clip_norm: bounds on gradient norms; 0: none.
        hold_x: first iterations in which x stays.
        inner_steps: policy steps for each step of x (nested, finite_difference).
        reward_steps: iterations that fit x before the policy moves (fixed_reward).
        difference: half-width of the central difference in x.
        fisher_steps, fisher_damping: products of conjugate gradients, and damping as a share of the curvature along what
            is solved for (estimator fisher).
        curvature: fisher, or hessian with what the policy can't express of its reward.
        target_kl, kl_rate: where tau is controlled (`kl_controller`); 0: it is not.
        off_policy_clip: bound on the ratio of a token's probability to that of the engine that sampled it.
        schedules: zeta, alpha, beta, w, tau.
    """

    method: str = "bilevel"
    estimator: str = "tilted"
    seed: int = 0
    steps: int = 200
    batch: int = 64
    group: int = 4
    micro_batch: int = 0
    one_pass: bool = True
    epochs: int = 1
    regularizer: str = "kl"
    kl_estimator: str = "exact"
    ratio: str = "sequence"
    ratio_clip: float = 3.0
    coupling: float = 0.0
    x_penalty: float = 0.0
    pairs_per_step: int = 8
    label_budget: int = 0
    replay_pairs: int = 0
    optimizer: str = "adam"
    clip_norm: float = 1.0
    x_clip_norm: float = 0.0
    hold_x: int = 0
    inner_steps: int = 10
    reward_steps: int = 100
    difference: float = 0.1
    fisher_steps: int = 6
    fisher_damping: float = 0.1
    curvature: str = "fisher"
    target_kl: float = 0.0
    kl_rate: float = 0.1
    off_policy_clip: float = 2.0
    schedules: TimeScales = TimeScales()
