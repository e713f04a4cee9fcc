"""Two levels on tables: A actions, T moves, policies as logits by history, a reward linear in x; all by enumeration."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch
from torch import Tensor, nn

from bilevel_rl.levels.engine import POLICIES, REWARD, Engine, Scores
from bilevel_rl.levels.labels import Labels


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Rows by the number of their sequence of actions."""

    number: Tensor
    actions: Tensor
    group: Tensor

    @property
    def size(self) -> int:
        return len(self.number)

    @property
    def mask(self) -> Tensor:
        return torch.ones(self.actions.shape, dtype=torch.double)

    @property
    def lengths(self) -> Tensor:
        return torch.full((self.size,), self.actions.shape[1])

    @property
    def ended(self) -> Tensor:
        return torch.ones(self.size, dtype=torch.bool)

    def rows(self, index) -> Episodes:
        return Episodes(self.number[index], self.actions[index], self.group[index])


class TableEngine(Engine):
    """`rows` rows an iteration, `group` of them from each start; chosen ones while `queue` has any."""

    def __init__(self, networks: int = 2, rows: int = 4, group: int = 4, actions: int = 2, moves: int = 2, seed: int = 0):
        random = np.random.default_rng(seed)
        self.all = torch.tensor(list(itertools.product(range(actions), repeat=moves)))  # [S, T]
        base = actions ** torch.arange(moves)
        # a history's number: sequences of fewer moves first
        self.history = torch.stack(
            [base[:t].sum() + (self.all[:, :t] * base[:t].flip(0)).sum(1) for t in range(moves)], 1
        )
        self.count, self.group, self.seed = rows, group, seed
        self.features = torch.tensor(random.standard_normal((len(self.all), 2)))
        self.gold = torch.tensor(random.standard_normal(len(self.all)))
        prefixes = int(base.sum())
        logits = torch.tensor(random.standard_normal((prefixes, actions)))
        self.reference = torch.tensor(random.standard_normal((prefixes, actions)))
        self.tables = {role: {"logits": nn.Parameter(logits.clone())} for role in POLICIES[:networks]}
        self.tables[REWARD] = {"x": nn.Parameter(torch.tensor([0.4, -0.7]).double())}
        self.names = tuple(self.tables)
        self.queue: list[list[int]] = []

    def episodes(self, numbers) -> Episodes:
        number = torch.as_tensor(numbers)
        return Episodes(number, self.all[number], torch.arange(len(number)) // self.group)

    def sample(self, role: str, k: int) -> Episodes:
        if self.queue:
            numbers = self.queue.pop(0)
        else:
            random = np.random.default_rng([self.seed, POLICIES.index(role), k])
            numbers = random.choice(len(self.all), size=self.count, p=self.law(role).detach().numpy())
        self.samples += self.count * self.all.shape[1]
        return self.episodes(numbers)

    def score(self, role: str, rows: Episodes) -> Scores:
        history = self.history[rows.number]
        log_p = self.table(role)[history].log_softmax(-1)
        log_q = self.reference[history].log_softmax(-1)
        at, p = rows.actions[..., None], log_p.exp()
        return Scores(
            log_p.gather(-1, at)[..., 0], (p * (log_p - log_q)).sum(-1), -(p * log_p).sum(-1), log_q.gather(-1, at)[..., 0]
        )

    def logits(self, role: str, rows: Episodes) -> Tensor:
        return self.table(role)[self.history[rows.number]]

    def table(self, role: str) -> Tensor:
        """[prefixes, A] logits of a role."""
        return self.tables[role]["logits"]

    def rewards(self, rows: Episodes) -> Tensor:
        return self.features[rows.number] @ self.tables[REWARD]["x"]

    def parameters(self, role: str):
        return self.tables[role]

    # -- by enumeration --------------------------------------------------------------------------------------------

    def law(self, role: str) -> Tensor:
        """[S] probability of each sequence."""
        return self.score(role, self.episodes(range(len(self.all)))).logp.sum(1).exp()

    def value(self, role: str, x: Tensor, tau: float) -> Tensor:
        """J_tau."""
        every = self.score(role, self.episodes(range(len(self.all))))
        law = every.logp.sum(1).exp()
        return (law * (self.features @ x - tau * every.kl.sum(1))).sum()

    def optimum(self, x: Tensor, tau: float, bonus: Tensor | float = 0.0) -> Tensor:
        """[S] the law that maximises E[r + bonus] - tau KL."""
        log_q = self.reference[self.history].log_softmax(-1).gather(-1, self.all[..., None])[..., 0].sum(1)
        return (log_q + (self.features @ x + bonus) / tau).softmax(0)

    def set_law(self, role: str, law: Tensor) -> None:
        """Make a role write this law."""
        with torch.no_grad():
            table = self.tables[role]["logits"]
            for state, action in itertools.product(range(len(table)), range(table.shape[1])):
                mine = ((self.history == state) & (self.all == action)).any(1)
                table[state, action] = law[mine].sum().log()


class TableLabels(Labels):
    """The gold score decides; pairs are kept as numbers."""

    def __init__(self, engine: TableEngine) -> None:
        self.engine = engine

    def answers(self, rows: Episodes, pairs: Tensor) -> Tensor:
        gold = self.engine.gold[rows.number]
        return (gold[pairs[:, 0]] < gold[pairs[:, 1]]).long()

    def gold(self, rows: Episodes) -> Tensor:
        return self.engine.gold[rows.number]

    def kept(self, rows: Episodes, pairs: Tensor) -> list:
        return [[int(rows.number[i]), int(rows.number[j])] for i, j in pairs.tolist()]

    def rows(self, pairs) -> tuple[Episodes, Episodes]:
        first, second = zip(*pairs, strict=True)
        return self.engine.episodes(list(first)), self.engine.episodes(list(second))
