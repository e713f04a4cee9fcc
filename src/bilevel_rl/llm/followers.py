"""The followers: theta and theta^L as two values of one record, scored and differentiated by one function each.

`Lower.score` fills a record with what the estimators read: rewards, log-probabilities, the exact KL, entropy, values.
`Lower.backward` adds one follower's gradient (and its critic's) on some of this process's rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.levels import estimators
from bilevel_rl.levels.guards import check_finite
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.differences import Differences
from bilevel_rl.llm.forward import precision
from bilevel_rl.llm.roles.backend import Roles
from bilevel_rl.llm.roles.policy import TokenStatistics, token_statistics
from bilevel_rl.llm.sampling.rollout import Rollout
from bilevel_rl.policy_gradient.aggregate import sum_of_tokens
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.recipe import Recipe


@dataclasses.dataclass
class Follower:
    """One policy's share of an iteration. Tensors of the whole batch are [N] or [N, T]; `own` means this process.

    Attributes:
        role, critic: names of its roles; `critic` is "" without critics.
        rollout: completions that it learns from, of all processes.
        mine: the rows of this process.
        own: token statistics of this process's rows (with a graph when one pass does all).
        own_values: values likewise.
        logp, kl, entropy, cost, values: [N, T] of the whole batch, no graph.
        reward: [N] r_x.
        total: [N] what is paid at the last token.
        weight: [N, T] importance, 1 for its own completions.
        advantage, targets: [N, T].
        terms: [N, K] reward terms whose sum is the reward, where a recipe runs and the reward model has them.
        ready, rows: with a recipe, the prepared batch and its completions (None: they are `rollout`).
        rho: [n, T] importance of the rows of `ready`.
        known: [n, T] where the critic has a target.
    """

    role: str
    critic: str
    rollout: Rollout
    mine: Rollout
    own: TokenStatistics | None = None
    own_values: Tensor | None = None
    logp: Tensor | None = None
    reference: Tensor | None = None
    kl: Tensor | None = None
    entropy: Tensor | None = None
    cost: Tensor | None = None
    values: Tensor | None = None
    reward: Tensor | None = None
    total: Tensor | None = None
    weight: Tensor | None = None
    advantage: Tensor | None = None
    targets: Tensor | None = None
    terms: Tensor | None = None
    ready: Batch | None = None
    rows: Rollout | None = None
    rho: Tensor | None = None
    known: Tensor | None = None


def distinct(followers: Sequence[Follower]) -> list[Follower]:
    """The followers with a rollout of their own; those that share one count once."""
    return [f for i, f in enumerate(followers) if all(f.rollout is not g.rollout for g in followers[:i])]


class Lower:
    """The lower level's computations on rollouts.

    Args:
        config: regulariser, precision, clip.
        roles: the weights.
        processes, share: who computes which rows.
        differences: shifts x for the finite-difference baseline.
        one_pass: scoring keeps its graph, and learning uses it.
        terms: ask the reward model for its terms.
    """

    def __init__(
        self, config: Config, roles: Roles, processes: Processes, share: Share, differences: Differences,
        one_pass: bool, terms: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.roles, self.processes, self.share = config, roles, processes, share
        self.differences, self.one_pass = differences, one_pass
        self.terms = terms and hasattr(roles.reward, "terms")

    def score(self, followers: list[Follower], tau: float, graph: bool, k: int) -> None:
        """Rewards, log-probabilities, exact KL, entropy and values of each follower on its completions."""
        config, gather = self.config, self.processes.gather
        parts: dict[str, list[Any]] = {f.role: [] for f in followers}
        with torch.set_grad_enabled(graph), precision(config.dtype, self.processes.device):
            for rows in self.share.parts():
                law: tuple[Rollout, Tensor] | None = None
                for f in followers:
                    part = self.share.part(f.mine, rows)
                    if law is None or law[0] is not f.mine:
                        law = (f.mine, self._reference_law(part))
                    own = self._statistics(f.role, part, law[1])
                    values = self.roles.values(f.critic, part) if f.critic else None
                    at_tokens = law[1].gather(-1, part.completions[..., None])[..., 0]
                    parts[f.role].append((own, values, at_tokens))
        for f in followers:
            pieces = parts[f.role]
            f.own = TokenStatistics(*(torch.cat([p[0][i] for p in pieces]) for i in range(3)))
            f.logp, f.kl, f.entropy = (gather(v.detach()) for v in f.own)
            f.reference = gather(torch.cat([p[2] for p in pieces]) * f.mine.mask)
            if f.critic:
                f.own_values = torch.cat([p[1] for p in pieces])
                f.values = gather(f.own_values.detach())
            f.cost = tau * self._regularizer(f)
        self._rewards(followers, k)
        for f in followers:
            check_finite("reward", f.reward, k)
            check_finite("log-probability", f.logp, k)

    def _rewards(self, followers: list[Follower], k: int) -> None:
        theta, theta_l = followers[0], followers[-1]
        with torch.no_grad():
            for f in followers:
                if f is theta_l and f is not theta and f.rollout is theta.rollout:
                    f.reward, f.terms = theta.reward, theta.terms
                    continue
                with self.differences.shifted(f.role, k):
                    self._pay(f)

    def _pay(self, f: Follower) -> None:
        if self.terms:
            f.terms = self.processes.gather(self.roles.reward.terms(f.mine).to(f.rollout.logp.dtype))
            f.reward = f.terms.sum(1)
        else:
            f.reward = self.processes.gather(self._reward_rows(f.mine))

    def look(self, f: Follower) -> None:
        """Score completions that no policy of this run has written; every process scores all of them, without a graph."""
        rollout = f.rollout
        law = self._reference_law(rollout)
        f.logp, f.kl, f.entropy = self._statistics(f.role, rollout, law)
        f.reference = law.gather(-1, rollout.completions[..., None])[..., 0] * rollout.mask
        f.values = self.roles.values(f.critic, rollout) * rollout.mask if f.critic else None
        if self.terms:
            f.terms = self.roles.reward.terms(rollout).to(f.logp.dtype)
            f.reward = f.terms.sum(1)
        else:
            f.reward = self.roles.rewards(rollout).to(f.logp.dtype)

    @torch.no_grad()
    def logits(self, role: str, rollout: Rollout) -> Tensor:
        """[N, T, V] of all rows."""
        with precision(self.config.dtype, self.processes.device):
            return self.roles.logits(role, rollout)

    def head(self, role: str) -> Tensor:
        """[V, D] the output embeddings of a policy."""
        with self.roles.model(role) as model:
            return model.get_output_embeddings().weight.detach()

    def _reward_rows(self, rollout: Rollout) -> Tensor:
        with precision(self.config.dtype, self.processes.device):
            parts = [self.roles.rewards(self.share.part(rollout, rows)) for rows in self.share.parts()]
        return torch.cat(parts).to(rollout.logp.dtype)

    def _statistics(self, role: str, part: Rollout, reference: Tensor) -> TokenStatistics:
        stats = token_statistics(self.roles.logits(role, part), part.completions, reference)
        return TokenStatistics(*(value * part.mask for value in stats))

    def _reference_law(self, part: Rollout) -> Tensor:
        with torch.no_grad():
            return self.roles.logits("reference", part).log_softmax(-1)

    def _regularizer(self, f: Follower) -> Tensor:
        """[N, T] the regulariser at each token; k3 enters the loss directly and costs nothing here."""
        kind = self.config.kl_estimator
        if self.config.regularizer == "entropy":
            return -f.entropy if kind == "exact" else f.logp
        if kind == "exact":
            return f.kl
        return torch.zeros_like(f.kl) if kind == "k3" else estimators.sampled_kl(f.logp, f.reference, "k1")

    def backward(self, f: Follower, rows: slice, tau: float, scale: Tensor | None, k: int) -> None:
        """Gradients of one follower and its critic on some of this process's rows."""
        config = self.config
        here = self.share.here(rows)
        part = self.share.part(f.mine, rows)
        weight, mask = f.weight[here], part.mask
        with self.roles.model(f.role), precision(config.dtype, self.processes.device):
            own = f.own if self.one_pass else self._statistics(f.role, part, self._reference_law(part))
            direct = self._direct(own, f.reference[here], tau)
            if direct is not None and scale is not None:
                direct = direct * scale[here, None]
            loss = estimators.policy_loss(
                own.logp, f.logp[here], f.advantage[here], weight, direct, mask, config.clip, f.rollout.size
            )
            check_finite(f"loss of {f.role}", loss, k)
            loss.backward()
        if f.critic:
            with self.roles.model(f.critic), precision(config.dtype, self.processes.device):
                values = f.own_values if self.one_pass else self.roles.values(f.critic, part)
                loss = estimators.value_loss(
                    values, f.targets[here], weight, mask, float(f.rollout.mask.sum())
                )
                check_finite(f"loss of {f.critic}", loss, k)
                loss.backward()

    def _direct(self, own: TokenStatistics, reference: Tensor, tau: float) -> Tensor | None:
        """tau times the regulariser with a graph, for the kinds whose gradient at each visited prefix is known."""
        config = self.config
        if config.kl_estimator == "exact":
            return tau * (own.kl if config.regularizer == "kl" else -own.entropy)
        if config.kl_estimator == "k3":
            return tau * estimators.sampled_kl(own.logp, reference, "k3")
        return None

    # -- with a recipe ----------------------------------------------------------------------------------------

    def backward_ready(
        self, f: Follower, recipe: Recipe, tau: float, first: bool, k: int, half: int | None = None
    ) -> None:
        """Gradients of one follower and its critic on its prepared batch.

        The loss is a function of [n, T] tensors of the whole batch, whatever it compares. Its gradient in them goes
        back through the model by parts and processes, which therefore changes nothing.

        Args:
            f: with `ready`.
            recipe: loss and regularisers.
            tau: weight of the problem's regulariser.
            first: no step has been taken since `ready` was scored.
            k: iteration.
            half: 0 or 1, the gradient of that half of the rows, doubled; None: of all.
        """
        batch, rows = f.ready, len(f.ready)
        if not rows:
            return
        graph = f.rows is None and self.one_pass
        rollout = f.rollout if f.rows is None else f.rows
        names = ["logp", "kl", "entropy"]
        old_rows = f.rows is not None and batch.has("replayed") and bool(batch.get("replayed").any())
        whole = (
            {name: batch.get(name) for name in names}
            if first and not old_rows
            else dict(zip(names, self._again(f.role, rollout), strict=True))
        )
        if "logits" in {name for c in recipe.components for name in c.card.gradient}:
            names.append("logits")
            whole["logits"] = self.logits(f.role, rollout)
        leaves = {name: value.detach().requires_grad_() for name, value in whole.items()}
        loss, _ = recipe.objective(batch.replace(**leaves))
        direct = self._direct(
            TokenStatistics(leaves["logp"], leaves["kl"], leaves["entropy"]), batch.ref, tau
        )
        if direct is not None:
            loss = loss + weighs(recipe.loss)(direct * self._visited(f), batch)
        check_finite(f"loss of {f.role}", loss, k)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradients = {n: g for n, g in zip(names, found, strict=True) if g is not None}
        if half is not None:
            keep = (torch.arange(rows, device=loss.device) < rows // 2) == (half == 0)
            gradients = {
                n: g * (2.0 * keep).reshape(-1, *[1] * (g.ndim - 1)).to(g) for n, g in gradients.items()
            }
        for here, part in self._parts_of(f, rollout):
            with self.roles.model(f.role), precision(self.config.dtype, self.processes.device):
                own = f.own if graph else self._statistics(f.role, part, self._reference_law(part))
                given = own._asdict()
                if "logits" in gradients:
                    given["logits"] = self.roles.logits(f.role, part)
                torch.stack([(given[n] * g[here]).sum() for n, g in gradients.items()]).sum().backward(
                    retain_graph=graph and half == 0
                )
            if f.critic:
                with self.roles.model(f.critic), precision(self.config.dtype, self.processes.device):
                    values = f.own_values if graph else self.roles.values(f.critic, part)
                    ones = torch.ones_like(values) if f.rho is None else f.rho[here]
                    known = f.known[here].to(values)
                    value_loss = estimators.value_loss(
                        values, f.targets[here], ones, known, float(f.known.sum().clamp(min=1))
                    )
                    check_finite(f"loss of {f.critic}", value_loss, k)
                    value_loss.backward(retain_graph=graph and half == 0)

    def _parts_of(self, f: Follower, rollout: Rollout) -> list[tuple[slice, Rollout]]:
        """This process's rows of a prepared batch: where they are in it, and the completions."""
        if f.rows is None:
            return [(self.share.here(rows), self.share.part(f.mine, rows)) for rows in self.share.parts()]
        mine = self.processes.part(rollout.size)
        size = self.config.micro_batch or rollout.size
        parts = [slice(i, min(i + size, mine.stop)) for i in range(mine.start, mine.stop, size)]
        return [(rows, rollout.rows(rows)) for rows in parts]

    @torch.no_grad()
    def _again(self, role: str, rollout: Rollout) -> TokenStatistics:
        """Statistics of all rows under the policy as it is now, each process computing its own."""
        out = [torch.zeros_like(rollout.logp) for _ in range(3)]
        mine = self.processes.part(rollout.size)
        size = self.config.micro_batch or rollout.size
        with precision(self.config.dtype, self.processes.device):
            for i in range(mine.start, mine.stop, size):
                rows = slice(i, min(i + size, mine.stop))
                part = rollout.rows(rows)
                for total, value in zip(
                    out, self._statistics(role, part, self._reference_law(part)), strict=True
                ):
                    total[rows] = value
        self.processes.add(out)
        return TokenStatistics(*out)

    def _visited(self, f: Follower) -> Tensor:
        """[n, T] weight of the regulariser's own gradient: importance, 0 where another policy chose the prefix."""
        batch = f.ready
        weight = torch.ones_like(batch.old) if f.rho is None else f.rho
        for name in ("replayed", "demonstration"):
            if batch.has(name):
                weight = torch.where(batch.get(name).bool()[:, None], 0, weight)
        return weight


def weighs(loss: Any) -> Callable[[Tensor, Batch], Tensor]:
    """How a loss averages over tokens; the regulariser is averaged alike."""
    return getattr(loss, "aggregate", sum_of_tokens)
