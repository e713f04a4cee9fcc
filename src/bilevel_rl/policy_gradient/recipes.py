"""Recipes by name.

A recipe has no KL or entropy term of its own unless the method is about one: tau belongs to the problem,
and the trainer adds it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.policy_gradient import (
    aggregate,
    composition,
    credit,
    losses,
    regularizers,
    reward,
    rollout,
    select,
    weigh,
)
from bilevel_rl.policy_gradient.lookup import COMPONENTS, FACTORIES, OPTIONS, component
from bilevel_rl.policy_gradient.recipe import Recipe

__all__ = ["ALL", "COMPONENTS", "FACTORIES", "OPTIONS", "component", "compose", "named"]

_GROUP, _CLIP = credit.GroupNorm(), losses.Clipped(aggregate=aggregate.per_sequence)

ALL: tuple[Recipe, ...] = (
    Recipe("reinforce", credit=credit.Return()),
    Recipe("rloo", credit=credit.LeaveOneOut()),
    Recipe("token_rloo", credit=credit.ToGoLeaveOneOut(), loss=losses.Clipped(aggregate=aggregate.sum_of_tokens)),
    Recipe("actor_critic", credit=credit.GAE(), loss=losses.Clipped(aggregate=aggregate.sum_of_tokens)),
    Recipe("remax", credit=credit.Greedy()),
    Recipe("reinforce_pp", credit=credit.BatchNorm(), loss=losses.Clipped()),
    Recipe("reinforce_pp_baseline", credit=credit.BatchNorm(inner=credit.GroupMean()), loss=losses.Clipped()),
    Recipe("ppo", credit=credit.BatchNorm(inner=credit.GAE()), loss=losses.Clipped()),
    Recipe("grpo", credit=_GROUP, loss=_CLIP),
    Recipe("dr_grpo", credit=credit.GroupMean(), loss=losses.Clipped(aggregate=aggregate.sum_of_tokens)),
    Recipe(
        "dapo", rollout=(rollout.Refill(),), reward=(reward.SoftOverlong(),), select=(select.Informative(),),
        credit=_GROUP, loss=losses.Clipped(high=0.28),
    ),
    Recipe("gspo", credit=_GROUP, loss=losses.SequenceRatio()),
    Recipe("gspo_token", credit=_GROUP, loss=losses.SequenceRatio(by_token=True)),
    Recipe("gpg", credit=credit.GPG(), loss=losses.PolicyGradient(aggregate=aggregate.per_token)),
    Recipe("cispo", credit=_GROUP, loss=losses.ClippedWeight()),
    Recipe("sapo", credit=_GROUP, loss=losses.SoftGate()),
    Recipe("vespo", credit=_GROUP, loss=losses.GammaWeight()),
    Recipe("luspo", credit=_GROUP, loss=losses.SequenceRatio(aggregate=aggregate.sum_of_tokens)),
    Recipe("lite_ppo", credit=credit.GroupNorm(over="batch"), loss=losses.Clipped()),
    Recipe("gdpo", credit=credit.Decoupled(), loss=_CLIP),
    Recipe("high_entropy", credit=_GROUP, weigh=(weigh.HighEntropy(),), loss=losses.Clipped(high=0.28)),
    Recipe("off_policy_mask", credit=_GROUP, weigh=(weigh.OffPolicyMask(),), loss=_CLIP),
    Recipe("opo", credit=credit.LengthBaseline()),
    Recipe("oblr", credit=credit.OptimalBaseline()),
    Recipe("empg", credit=credit.EMPG(inner=_GROUP), loss=_CLIP),
    Recipe("adora", credit=credit.Adora(inner=_GROUP), loss=_CLIP),
    Recipe("adora_vision", credit=credit.Adora(inner=_GROUP, release="vision"), loss=_CLIP),
    Recipe("copo", credit=credit.Consistency(inner=_GROUP), loss=_CLIP),
    Recipe("dvao", credit=credit.MultiReward(), loss=_CLIP),
    Recipe("t_ppo", credit=credit.TruncatedGAE(), loss=losses.Clipped()),
    Recipe(
        "t_ppo_windows", rollout=(rollout.Windows(),), credit=credit.TruncatedGAE(), weigh=(weigh.Window(),),
        loss=losses.Clipped(),
    ),
    Recipe("hiper", credit=credit.Hierarchical(high=credit.StateValues(gamma=0.99)), loss=losses.Clipped()),
    Recipe("vl_dac", credit=credit.StepLevel(normalise=True), loss=losses.Clipped()),
    Recipe("hgpo", credit=credit.HierarchyOfGroups(), loss=_CLIP),
    Recipe("gigpo", credit=credit.Episode() + credit.StepGroups(), loss=_CLIP),
    Recipe("salt", credit=credit.TrajectoryGraph(inner=_GROUP), loss=_CLIP),
    Recipe("spae", rollout=(rollout.StepProbe(),), credit=credit.StepPotential(inner=_GROUP), loss=_CLIP),
    Recipe("advantage_alignment", credit=credit.Alignment()),
    Recipe(
        "polychromic", rollout=(rollout.Vine(),), credit=credit.Polychromic(), weigh=(weigh.Window(),),
        loss=losses.Clipped(),
    ),
    Recipe("polychromic_sets", credit=credit.Polychromic(), loss=losses.Clipped()),
    Recipe(
        "segment_chain", rollout=(rollout.PrefixValues(),), credit=credit.SegmentChain(), weigh=(weigh.Confident(),),
        loss=losses.Clipped(),
    ),
    Recipe(
        "segment_tree", rollout=(rollout.Tree(),), credit=credit.SegmentTree(), weigh=(weigh.Confident(),),
        loss=losses.Clipped(),
    ),
    Recipe("d3s", select=(select.MostVaried(),), credit=_GROUP, weigh=(weigh.EntropyTokens(),), loss=_CLIP),
    Recipe("pcl", rollout=(rollout.Nearest(value=rollout.PromptModel()),), credit=credit.GroupMean()),
    Recipe("pcl_thinned", select=(select.PromptCurriculum(),), credit=credit.GroupMean()),
    Recipe("v0_budget", rollout=(rollout.Spread(value=rollout.PromptModel()),), credit=_GROUP, loss=_CLIP),
    Recipe("v0_thinned", select=(select.Budget(),), credit=_GROUP, loss=_CLIP),
    Recipe("capo", credit=_GROUP, weigh=(weigh.Curvature(),), loss=_CLIP),
    Recipe("duration", credit=credit.LeaveOneOut(), weigh=(weigh.Duration(),)),
    Recipe("clip_cov", credit=_GROUP, weigh=(weigh.ClipCovariance(),), loss=losses.Clipped(low=1.0, high=1.0)),
    Recipe("kl_cov", credit=_GROUP, loss=losses.Unified(), regular=((1.0, regularizers.CovarianceKL()),)),
    Recipe("adhint", rollout=(rollout.Hint(),), credit=credit.HintCredit(), weigh=(weigh.HintWeight(),), loss=_CLIP),
    Recipe("epo", credit=_GROUP, loss=_CLIP, regular=((0.001, regularizers.TurnEntropy()),)),
    Recipe("safe", credit=credit.GAE(), loss=losses.Clipped(), regular=((1.0, regularizers.PredictiveKL()),)),
    Recipe("g2rl", reward=(reward.Novelty(),), credit=_GROUP, loss=_CLIP),
    Recipe("subpo", reward=(reward.Coverage(),), credit=credit.RewardToGo()),
    Recipe("self_play_win_rate", reward=(reward.WinRate(),), credit=credit.LeaveOneOut()),
    Recipe("hpt", credit=credit.Gate(inner=_GROUP), loss=losses.Hybrid()),
    Recipe("r3", reward=(reward.RankingReward(),), select=(select.Replay(),), credit=credit.ReplayCredit(), loss=_CLIP),
    Recipe("copg", loss=losses.Contrastive()),
    Recipe("p3o", loss=losses.PairwisePPO()),
    Recipe("inpo", loss=losses.NashPreference()),
    Recipe("direct_advantage", credit=credit.GroupMean(), loss=losses.DirectAdvantage()),
    Recipe("mdpo", loss=losses.MirrorDescent()),
    Recipe("nash_mirror_prox", reward=(reward.WinRate(),), loss=losses.NashMirrorProx()),
    Recipe("awm", credit=_GROUP, loss=losses.AdvantageMatching(), regular=((0.001, regularizers.VelocityGap()),)),
    Recipe("sft", credit=credit.Return(), loss=losses.Supervised()),
    Recipe("precision", credit=credit.Return(), loss=losses.Precision()),
)  # fmt: skip


def named(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        InvalidConfig: there is none; the message has the nearest names.

    Example:
        >>> named("grpo").credit
        GroupNorm(eps=0.0001, ddof=1)
    """
    for recipe in ALL:
        if recipe.name == name:
            return recipe
    raise InvalidConfig(
        message(
            "recipe",
            repr(name),
            did_you_mean(name, [r.name for r in ALL]),
            "Choose one, or compose: credit=...",
        )
    )


def compose(text: str) -> Recipe:
    """A recipe from a name, or from the names of its parts; nothing is executed but their constructors.

    Decorators take what they wrap in parentheses, options are keywords, several parts of a slot go in brackets, a
    regulariser is multiplied by its coefficient, and credit rules may be scaled and added. A recipe's name first
    means: that recipe, with the slots that follow replaced.

    Raises:
        InvalidConfig: text that doesn't parse, an unknown name, a part in the wrong slot, an option that doesn't exist.

    Example:
        >>> compose("credit=empg(adora(group_norm)), loss=clipped(high=0.28), regular=0.01*sampled_kl").name
        'credit=empg(adora(group_norm)), loss=clipped(high=0.28), regular=0.01*sampled_kl'
        >>> compose("grpo, loss=gspo").credit
        GroupNorm(eps=0.0001, ddof=1)
    """
    return composition.read(text, named)


def from_description(description: Mapping[str, str]) -> Recipe:
    """The recipe that `Recipe.describe` described."""
    return dataclasses.replace(compose(description["composition"]), name=description["name"])
