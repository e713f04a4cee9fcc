r"""Behaviour cloning: $\max_\pi E_D[\log \pi(a|s)]$."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax

from bilevel_rl.control import nets
from bilevel_rl.control.offline import parts
from bilevel_rl.control.offline.learner import Softly


class Cloned(eqx.Module):
    """What it has learnt.

    Attributes:
        actor: the policy.
    """

    actor: nets.Trained


class BC(Softly):
    """Behaviour cloning: does what was done, whatever it earned."""

    name: ClassVar[str] = "bc"

    def init(self, environment, facts, key):
        return Cloned(nets.Trained.begin(parts.Soft.make(environment, self.width, key)))

    def update(self, environment, F, batch, gamma, k, key):
        slope = jax.grad(lambda pi: parts.cloning_loss(environment, pi, batch))(F.actor.params)
        return Cloned(F.actor.descend(slope, self.rate))
