"""The usual follower of an environment: soft Q-learning where actions are numbered, SAC where they are vectors."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import Follower
from bilevel_rl.control.followers.sac import SAC
from bilevel_rl.control.followers.soft_q import SoftQ


class Usual(Follower):
    """Chooses by the kind of actions, and hands everything on.

    Args:
        soft_q: the follower where actions are numbered.
        sac: the follower where they are vectors.

    Example:
        >>> Usual(sac=SAC(critics=2)).sac.critics
        2
    """

    soft_q: SoftQ = SoftQ()
    sac: SAC = SAC()

    name: ClassVar[str] = "usual"
    references: ClassVar[tuple[str, ...]] = (*SoftQ.references, *SAC.references)

    def on(self, environment: Environment) -> Follower:
        return self.soft_q if hasattr(environment.action, "n") else self.sac

    def check(self, environment):
        self.on(environment).check(environment)

    def init(self, environment, key):
        return self.on(environment).init(environment, key)

    def out(self, environment, F, obs):
        return self.on(environment).out(environment, F, obs)

    def update(self, environment, F, rows, r, gamma, tau, key):
        return self.on(environment).update(environment, F, rows, r, gamma, tau, key)
