"""The usual follower of an environment: soft Q-learning where actions are numbered, SAC or a kind of it where not."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import equinox as eqx

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.ac_flow import ACFlow
from bilevel_rl.control.followers.ail_boost import AILBoost
from bilevel_rl.control.followers.ctrl import CTRL
from bilevel_rl.control.followers.follower import Follower
from bilevel_rl.control.followers.pmoe import PMOE
from bilevel_rl.control.followers.sac import SAC
from bilevel_rl.control.followers.soft_q import SoftQ
from bilevel_rl.control.followers.srl import SRL
from bilevel_rl.control.followers.stac import STAC
from bilevel_rl.control.followers.symphony import Symphony

Kind = Literal["sac", "stac", "symphony", "srl", "pmoe", "ail_boost", "ac_flow", "ctrl"]


class Usual(Follower):
    """Chooses by the kind of actions, and hands everything on.

    Args:
        soft_q: the follower where actions are numbered.
        sac: the follower where they are vectors, unless another is chosen.
        stac, symphony, srl, pmoe, ail_boost, ac_flow, ctrl: followers by these names, where they are chosen.
        chosen: which one acts where actions are vectors.

    Example:
        >>> Usual(sac=SAC(critics=2)).sac.critics
        2
    """

    soft_q: SoftQ = SoftQ()
    sac: SAC = SAC()
    stac: STAC = STAC()
    symphony: Symphony = Symphony()
    srl: SRL = SRL()
    pmoe: PMOE = PMOE()
    ail_boost: AILBoost = AILBoost()
    ac_flow: ACFlow = ACFlow()
    ctrl: CTRL = CTRL()
    chosen: Kind = eqx.field(static=True, default="sac")

    name: ClassVar[str] = "usual"

    @property
    def references(self):
        return tuple(dict.fromkeys((*self.soft_q.references, *getattr(self, self.chosen).references)))

    def on(self, environment: Environment) -> Follower:
        return self.soft_q if hasattr(environment.action, "n") else getattr(self, self.chosen)

    def prepared(self, problem):
        if hasattr(problem.environment.action, "n"):
            return self
        return dataclasses.replace(self, **{self.chosen: getattr(self, self.chosen).prepared(problem)})

    def check(self, environment):
        self.on(environment).check(environment)

    def init(self, environment, key):
        return self.on(environment).init(environment, key)

    def out(self, environment, F, obs):
        return self.on(environment).out(environment, F, obs)

    def drawn(self, environment, F, obs, M, key):
        return self.on(environment).drawn(environment, F, obs, M, key)

    def update(self, environment, F, rows, r, gamma, tau, key):
        return self.on(environment).update(environment, F, rows, r, gamma, tau, key)
