r"""Two levels on stored data: x shapes what a learner from data is paid, or how much each source of the data counts.

The leader sees what is stored and nothing else, and judges the learnt policy by held-out data.
"""

# no `from __future__ import annotations`: Equinox reads `AbstractVar` only where annotations are evaluated
import abc
import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.offline.bank import Bank
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.errors import InvalidProblem, message


@dataclasses.dataclass(frozen=True)
class JudgedPolicy:
    """A learnt policy, as the leader may ask it.

    Attributes:
        log_prob: (obs [B, o], actions [B, m]) -> [B]; None of learners without a likelihood.
        value: obs [B, o] -> [B], estimated from held-out data; None of problems that do not ask for it.
    """

    log_prob: Any
    value: Any


class OfflineProblem(ControlProblem):
    r"""Minimise $\Phi(x) = c(x) + f(x, \pi^*(x))$, where the policy is learnt from stored data under x.

    Set `bank` and `held`, write `outcome`, and `reward` or `shares`.

    Attributes:
        bank: what the learner learns from.
        held: what the leader judges it by.
    """

    bank: eqx.AbstractVar[Bank]
    held: eqx.AbstractVar[Bank]

    unit: ClassVar[float] = 1.0  # by which the environment's own reward is divided
    asks_likelihood: ClassVar[bool] = False
    asks_value: ClassVar[bool] = False

    def features(self, t):
        return t.reward[None] / self.unit

    def reward(self, x, features):
        return features[0]

    def shares(self, x: Float[Array, " d"]) -> Float[Array, " S"] | None:
        """How much each source counts, summing to one; None where x does not say."""
        return None

    @abc.abstractmethod
    def outcome(self, x: Float[Array, " d"], judged: JudgedPolicy) -> Float[Array, ""]:
        """f: what the leader makes of the policy, smaller is better."""

    def bank_at(self, x: Float[Array, " d"]) -> Bank:
        """The data under x."""
        bank = self.bank.paid(jax.vmap(lambda t: self.reward(x, self.features(t)))(self.bank.t))
        shares = self.shares(x)
        if shares is None:
            return bank
        # a source of n rows with share p: each of its rows counts p N / n
        rows = jnp.bincount(bank.source, length=shares.shape[0]).astype(jnp.float32)
        return bank.weighed((shares * bank.rows / jnp.maximum(rows, 1))[bank.source])

    def accept(self, solver: Any) -> None:
        if not getattr(solver, "offline", False):
            raise InvalidProblem(
                message(f"solver {solver.name} on {self.name}", "a solver that walks in the environment",
                        "this problem has stored data alone", "Take offline_iql or offline_bc")
            )  # fmt: skip
        super().accept(solver)
