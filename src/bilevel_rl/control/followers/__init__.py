"""Followers: learning agents whose networks answer x. One file a kind."""

from bilevel_rl.control.followers.ac_flow import ACFlow
from bilevel_rl.control.followers.actor_critic import ActorCritic
from bilevel_rl.control.followers.ail_boost import AILBoost
from bilevel_rl.control.followers.ctrl import CTRL
from bilevel_rl.control.followers.follower import Follower
from bilevel_rl.control.followers.given import Given, GivenChain, GivenFlow
from bilevel_rl.control.followers.pmoe import PMOE
from bilevel_rl.control.followers.sac import SAC
from bilevel_rl.control.followers.soft_q import SoftQ
from bilevel_rl.control.followers.srl import SRL
from bilevel_rl.control.followers.stac import STAC
from bilevel_rl.control.followers.symphony import Symphony
from bilevel_rl.control.followers.usual import Usual

ALL: tuple[type[Follower], ...] = (SoftQ, SAC, ActorCritic, STAC, Symphony, SRL, PMOE, AILBoost, ACFlow, CTRL)
__all__ = [
    "ALL", "CTRL", "PMOE", "SAC", "SRL", "STAC", "ACFlow", "AILBoost", "ActorCritic", "Follower", "Given",
    "GivenChain", "GivenFlow", "SoftQ", "Symphony", "Usual",
]  # fmt: skip
