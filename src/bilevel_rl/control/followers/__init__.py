"""Followers: learning agents whose networks answer x. One file a kind."""

from bilevel_rl.control.followers.actor_critic import ActorCritic
from bilevel_rl.control.followers.follower import Follower
from bilevel_rl.control.followers.sac import SAC
from bilevel_rl.control.followers.soft_q import SoftQ
from bilevel_rl.control.followers.usual import Usual

ALL: tuple[type[Follower], ...] = (SoftQ, SAC, ActorCritic)
__all__ = ["ALL", "SAC", "ActorCritic", "Follower", "SoftQ", "Usual"]
