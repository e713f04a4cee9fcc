"""`check_engine` passes a good engine and names what is wrong with a bad one."""

from __future__ import annotations

import pytest
import torch
from table_engine import TableEngine

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.levels.checks import check_engine


def test_the_table_engine_is_an_engine():
    for networks in (1, 2):
        check_engine(TableEngine(networks))


class Forgetful(TableEngine):
    def sample(self, role, k):
        return self.episodes(torch.randint(len(self.all), (4,)))


class Positive(TableEngine):
    def score(self, role, rows):
        scores = super().score(role, rows)
        return scores._replace(logp=-scores.logp)

    def law(self, role):
        return torch.full((len(self.all),), 1 / len(self.all))


class Cut(TableEngine):
    def rewards(self, rows):
        return super().rewards(rows).detach()


class Neighbours(TableEngine):
    def rewards(self, rows):
        found = super().rewards(rows)
        return found - found.mean()


class Apart(TableEngine):
    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.tables["policy_l"]["logits"].add_(0.1)


@pytest.mark.parametrize(("kind", "text"), [
    (Forgetful, r"sample\('policy', 0\): got other rows the second time"), (Positive, "a positive log-probability"),
    (Cut, r"rewards\(rows\): got a gradient in nothing; it depends on \['reward'\] alone"),
    (Neighbours, "a row's reward does not depend on its neighbours"), (Apart, "other names or values than theta's"),
])  # fmt: skip
def test_a_fault_is_named(kind, text):
    torch.manual_seed(0)
    with pytest.raises(InvalidProblem, match=text):
        check_engine(kind())
