r"""An upper objective for happy tweets: explain the labels, and write what wins them.

    f(x, pi) = - E_D[ log sigma( r_x(y_+) - r_x(y_-) ) ]  -  c E_{p, y ~ pi, y' ~ mu}[ y beats y' ]

D are the pairs labelled so far, and mu is the policy that wrote the fresh pairs, held fixed. The first term
has no dependence on pi; the second has none on x, and reaches x through the policy that is optimal for r_x.
Both are estimated
from the same labels: a pair costs one label and is used twice.

Why not the preference likelihood of fresh pairs for both (`Preference`)? Its dependence on pi rewards
*contrast*: a policy that writes one happy and one sad tweet makes labels easy to predict, and a policy that
writes only happy ones makes them a coin's toss. Measured on the grammar: it drives the gold score to zero
(docs/llm/happy-tweets.md).
"""

from __future__ import annotations

import dataclasses

import torch

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm.objectives import Preference, Sample, Upper


@dataclasses.dataclass(frozen=True)
class WinRate:
    """Preference likelihood of the labels so far, and the win rate against the policy's own completions.

    Attributes:
        weight: c, in nats a win; 0 leaves the preference likelihood of the labels, which no policy changes.

    Raises:
        InvalidConfig: a negative weight.
    """

    weight: float = 1.0
    needs_pairs: bool = True
    needs_gold: bool = False
    needs_stored: bool = False

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InvalidConfig(
                message("WinRate.weight", self.weight, "it must be at least 0", "Set weight to 0 or more")
            )

    def evaluate(self, sample: Sample) -> Upper:
        r"""See `UpperObjective`.

        A completion of a judged pair earns $\pm \frac{c}{2} \frac{N}{2M}$: plus for the winner, minus for
        the loser, which is the win with its mean of one half taken off.
        """
        fit = Preference().evaluate(sample)
        bonus = torch.zeros_like(sample.rewards.detach())
        pairs = sample.pairs
        if len(pairs):
            winner, loser = pairs.unbind(1)
            share = 0.5 * self.weight * sample.rollout.size / (2 * len(pairs))
            bonus = bonus.index_add(0, winner, share * torch.ones_like(bonus[winner]))
            bonus = bonus.index_add(0, loser, -share * torch.ones_like(bonus[loser]))
        # the value of the win term against one's own completions is c/2 whatever the policy: left out
        return Upper(fit.value, fit.loss, bonus)
