r"""The bi-level trainer: one loop over two policies, two critics, the reward model and a frozen reference.

One iteration k, on a batch of prompts (docs/llm/trainer.md has the mathematics):

    y ~ pi_theta, y_ ~ pi_theta^L            `sample`     (shared: y serves both, with ratios rho)
    r_x(y), KL, log-probabilities, values    `score`
    f and its gradients on y_                `upper`
    critics, theta and theta^L               `learn`      theta^L ascends J - w f
    x <- x - zeta D                          `descend`    D = grad_x f + (1/w) (E_pi - E_pi^L)[grad_x r]

What it is not: it knows no task, draws no figure, loads no data; those are callers' business.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, NonFiniteState, message
from bilevel_rl.llm import checkpoint, estimators, setup
from bilevel_rl.llm.callbacks import Callbacks
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.judging import LabelsPending, ask, choose_pairs
from bilevel_rl.llm.objectives import Sample, Upper, make_objective
from bilevel_rl.llm.optimizers import CoupledAdam
from bilevel_rl.llm.policy import TokenStatistics, precision, token_statistics
from bilevel_rl.llm.processes import Processes
from bilevel_rl.llm.prompts import Prompt, as_prompts, draw
from bilevel_rl.llm.reward import call_reward_function
from bilevel_rl.llm.roles import CRITICS, POLICIES, REWARD
from bilevel_rl.llm.rollout import Generator, Rollout, Sampler, from_pairs, texts, uniforms
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.credit.gae import value_targets
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.records import Run, append_line, locked, make_folder, provenance, write_bytes, write_json

log = logging.getLogger(__name__)
ROLLOUT, ROLLOUT_L, STORED, REPLAY, DIRECTION = range(0x20, 0x25)  # random streams, beside (seed, step)


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


class BilevelTrainer:
    """Fine-tune a language model with a reward model that answers for what its optimal policy writes.

    Args:
        config: every option; see `Config`.
        policy: a causal language model (any module with the calling convention of transformers' causal models), or
            a hub id or folder; None: `config.policy`.
        reward: a module that maps a `Rollout` to [N] rewards, an `AutoModelForSequenceClassification`, a folder or
            hub id, or "classifier"/"linear" for a head on the policy's body; None: `config.reward`.
        prompts: strings, token ids, conversations, or rows with the key `prompt`.
        tokenizer: tokenizer of the policy; None only when prompts are token ids.
        judge: pairwise judge: an object with TRL's `judge(prompts, completions, shuffle_order=...)`, or such a
            callable: for each prompt the index (0 or 1) of the preferred completion, -1 for no answer.
        gold: gold scorer with TRL's reward-function signature.
        preferences: stored preferences: rows with `prompt`, `chosen`, `rejected`.
        objective: a user's own upper objective; None: `config.objective`.
        reference: the frozen reference; None: a copy of the policy as it is now.
        generator: samples completions; None: our own sampler.
        recipe: credit and weigh components of `bilevel_rl.policy_gradient` in place of `config.credit`; both followers
            get theta's weights, so that their difference stays unbiased.
        callbacks: transformers `TrainerCallback`s.
        resume: continue from the checkpoint in `config.out`.
        problem: label of the task in the run folder.

    Raises:
        InvalidConfig, InvalidProblem: anything wrong with the inputs, before training starts.
        RunNotFound: resume without a checkpoint.

    Attributes:
        roles: the weights, by role.
        step: iterations done.
        history: one dict of metrics an iteration.
        memory: the estimate made at the start.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> tiny = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=16, n_embd=8, n_layer=1, n_head=1,
        ...                                   bos_token_id=0, eos_token_id=1))
        >>> config = Config(steps=1, objective={"gold": 1.0}, prompts_per_step=1, max_new_tokens=4)
        >>> def count_sevens(completion_ids, **_):
        ...     return [float(ids.count(7)) for ids in completion_ids]
        >>> trainer = BilevelTrainer(config, tiny, prompts=[[2, 3]], gold=count_sevens)
        >>> [sorted(line)[:3] for line in trainer.train()]
        [['alpha', 'beta', 'entropy']]

    References:
        arXiv 2601.16399, algorithm 1; the shared and tilted estimators are ours (docs/llm/trainer.md).
    """

    def __init__(
        self,
        config: Config,
        policy: Any = None,
        reward: Any = None,
        prompts: Iterable[Any] = (),
        *,
        tokenizer: Any = None,
        judge: Any = None,
        gold: Callable[..., Sequence[float]] | None = None,
        preferences: Iterable[Any] | None = None,
        objective: Any = None,
        reference: Any = None,
        generator: Generator | None = None,
        recipe: Recipe | None = None,
        callbacks: Sequence[Any] = (),
        resume: bool = False,
        problem: str = "language_model",
    ) -> None:
        self.config, self.schedules, self.problem = config, config.schedules, problem
        self.tokenizer = setup.load_tokenizer(config, policy, tokenizer)
        policy = setup.load_policy(config, policy)
        self.vocabulary = setup.vocabulary(policy)
        setup.check_vocabulary(policy, self.tokenizer)
        self.prompts = as_prompts(prompts, self.tokenizer, config.max_prompt_tokens, self.vocabulary)
        setup.check_context(config, policy, self.prompts)
        self.stop_ids = setup.stop_ids(config, policy, self.tokenizer)
        pad = getattr(self.tokenizer, "pad_token_id", None)
        self.pad_id = pad if pad is not None else self.stop_ids[0] if self.stop_ids else 0
        self.objective = objective if objective is not None else make_objective(config.objective)
        self.judge, self.gold = judge, gold
        self.stored = setup.as_pairs(preferences, self.tokenizer, config, self.vocabulary, self.stop_ids)
        self.recipe = recipe
        self._check_sources()
        self.processes = Processes(config.device)
        device = self.processes.device
        self.rows = self.processes.share(config.prompts_per_step)
        self.rows = slice(self.rows.start * config.group, self.rows.stop * config.group)
        self.roles = setup.make_roles(config, policy, reward, reference, device)
        self.generator = generator or Sampler(
            self.stop_ids, self.pad_id, config.temperature, self.tokenizer, config.dtype
        )
        names = self.roles.names
        # one optimiser for both followers: see `optimizers`
        self.optimizers = {
            kind: self._optimizer([name for name in among if name in names])
            for kind, among in (("policies", POLICIES), ("critics", CRITICS), ("reward", (REWARD,)))
            if among[0] in names
        }
        own = self.rows.stop - self.rows.start
        self.memory = setup.estimate_memory(config, self.roles, config.micro_batch or own, self.vocabulary)
        # one pass with a graph does all, unless rows come in parts, the batch is used again, or an adapter would be
        # switched between a checkpointed forward pass and its backward pass (silently wrong gradients)
        lora_checkpoint = config.backend == "lora" and config.gradient_checkpointing
        self.one_pass = config.epochs == 1 and not lora_checkpoint and not 0 < config.micro_batch < own
        self.step, self.history, self.warned = 0, [], set()
        self.labels = self.tokens = 0
        self.replay: list[setup.Pair] = []
        self.callbacks = Callbacks(
            callbacks, config, policy, self.tokenizer, self.optimizers["policies"], self.processes.main
        )
        if resume:
            self.resume()
        elif self.processes.main:
            log.info("memory %s", self.memory)
            for sentence in self.schedules.broken_constraints():
                log.info("schedules outside the paper's conditions: %s", sentence)

    def _check_sources(self) -> None:
        for needs, have, name, what in (
            (self.objective.needs_pairs, self.judge is not None, "judge", "a pairwise judge"),
            (self.objective.needs_gold, self.gold is not None, "gold", "a gold scorer"),
            (self.objective.needs_stored, bool(self.stored), "preferences", "stored preference pairs"),
        ):
            if needs and not have:
                raise InvalidConfig(
                    message(f"BilevelTrainer.{name}", "nothing", f"the upper objective needs {what}",
                            f"Pass {name}=, or choose another objective")
                )  # fmt: skip
        if self.config.method == "finite_difference" and self.objective.needs_stored:
            raise InvalidConfig(
                message("config.objective", "stored_preference with method=finite_difference",
                        "it does not depend on the policy", "Choose preference or gold")
            )  # fmt: skip

        if self.recipe is not None:
            self._check_recipe(self.recipe)

    def _check_recipe(self, recipe: Recipe) -> None:
        """Credit and weigh may be anything; what would change x's estimate or this loop's loss is refused by name."""
        for slot, used in (("select", recipe.select), ("reward", recipe.reward), ("regular", recipe.regular)):
            if used:
                raise InvalidConfig(
                    message(f"BilevelTrainer.recipe.{slot}", f"{len(used)} components",
                            "the trainer takes credit and weigh components; rewards, regularisers and the batch itself "
                            "are what the two levels agree on", f"Leave {slot} empty")
                )  # fmt: skip
        fields = {"logp", "old", "ref", "entropy", "kl"} | ({"value"} if self.config.uses_critics else set())
        recipe.check(fields, self.config.group)

    def _optimizer(self, roles: Sequence[str]) -> torch.optim.Optimizer:
        groups = [list(self.roles.parameters(role).values()) for role in roles]
        if self.config.optimizer == "sgd":
            return torch.optim.SGD([{"params": group} for group in groups], lr=1.0)
        return CoupledAdam(groups)

    # -- the loop ---------------------------------------------------------------------------------------------

    def train(self) -> list[dict[str, float]]:
        """Run to `config.steps`.

        Returns:
            The history: one dict of metrics an iteration. Checkpoints, lines, sample tables and callbacks happen
            on the way. A judge whose labels are pending stops the run, to be resumed.

        Raises:
            NonFiniteState: NaN or infinity, naming the quantity and the iteration; the last checkpoint stays.
            JudgeFailed: the judge failed three times in a row; the last checkpoint stays.
            StorageFailed: the run folder can't be written, or another process writes it.
        """
        with contextlib.ExitStack() as stack:
            if self.config.out and self.processes.main:
                stack.enter_context(locked(make_folder(self.config.out)))
            return self._train()

    def _train(self) -> list[dict[str, float]]:
        config, out = self.config, self._begin()
        self.callbacks.event("train_begin", self.step)
        try:
            while self.step < config.steps and not self.callbacks.stop:
                self.callbacks.event("step_begin", self.step)
                before = self.tokens, self.labels, len(self.replay), checkpoint.random_states()
                line = self.iterate(self.step)
                self.step += 1
                self._record(out, line)
                due = config.save_every and self.step % config.save_every == 0
                if due or self.callbacks.save:
                    self.save()
        except LabelsPending as pending:
            self.tokens, self.labels, pairs, states = before  # no weight of this iteration has moved yet
            del self.replay[pairs:]
            checkpoint.set_random_states(states)
            self.save()
            self._status(out, "stopped", str(pending))
            return self.history
        except BaseException as error:
            self._status(out, "stopped" if isinstance(error, KeyboardInterrupt) else "failed", str(error))
            raise
        self.save()
        self._status(out, "finished" if self.step >= config.steps else "stopped", "")
        self.callbacks.event("train_end", self.step)
        return self.history

    def iterate(self, k: int) -> dict[str, float]:
        """One iteration of the method; returns its metrics."""
        began, config, at = time.perf_counter(), self.config, self.schedules.at(k)
        moves, asks, zeta = self._plan(k)
        differs = config.method == "finite_difference"
        if not moves and not self._fresh_labels():
            return self._fit_only(k, zeta, began)  # fixed reward, labels spent: no rollout is needed
        prompts = [
            p
            for p in draw(self.prompts, config.prompts_per_step, config.seed, k)
            for _ in range(config.group)
        ]
        followers = self.sample(prompts, k)
        theta, theta_l = followers[0], followers[-1]
        self.score(followers, at.tau, graph=moves and self.one_pass)
        ratios = self._ratios(theta, theta_l)
        gold = self._gold(theta, theta_l)
        upper, sample = self.upper(theta_l, ratios, gold, k) if asks else (None, None)
        scale = self._scale(theta)
        coefficients = self._penalty(followers, ratios, upper, at, scale)
        hyper = None
        if zeta and differs:
            upper, hyper = self.difference(theta, theta_l, gold, k)
        elif zeta:
            hyper = self.hyper_gradient(followers, coefficients, upper, sample)
        norms: dict[str, float] = {}
        if moves:
            self.credit(followers, ratios, upper, at, scale)
            norms = self.learn(followers, at, scale, k)
        if hyper is not None:
            norms |= self.descend(hyper, zeta, k)
        return self._metrics(k, at, followers, ratios, gold, upper, norms, began)

    def _plan(self, k: int) -> tuple[bool, bool, float]:
        """Whether policies move, whether f is asked for, and the step of x (0: x stays)."""
        config = self.config
        if config.method == "fixed_reward":
            fitting = k < config.reward_steps
            return not fitting, fitting, self.schedules.zeta(k) if fitting else 0.0
        if config.method in ("nested", "finite_difference"):
            last = (k + 1) % config.inner_steps == 0
            zeta = self.schedules.zeta(k // config.inner_steps) if last and k >= config.hold_x else 0.0
            return True, config.method == "nested", zeta
        return True, True, self.schedules.zeta(k) if k >= config.hold_x else 0.0

    # -- rollouts ---------------------------------------------------------------------------------------------

    def sample(self, prompts: Sequence[Prompt], k: int) -> list[Follower]:
        """y ~ pi_theta, and y_ ~ pi_theta^L unless theta's completions serve both."""
        config = self.config
        y = self._rollout("policy", prompts, ROLLOUT, k)
        names = [("policy", "critic", y)]
        if config.uses_penalised:
            own = config.estimator == "paired" or config.method == "finite_difference"
            y_l = self._rollout("policy_l", prompts, ROLLOUT_L, k) if own else y
            names.append(("policy_l", "critic_l", y_l))
        return [
            Follower(role, critic if config.uses_critics else "", whole, mine)
            for role, critic, (whole, mine) in names
        ]

    def _rollout(self, role: str, prompts: Sequence[Prompt], stream: int, k: int) -> tuple[Rollout, Rollout]:
        config = self.config
        u = uniforms(len(prompts), config.max_new_tokens, config.seed, stream, k)[self.rows]
        with self.roles.model(role) as model:
            mine = self.generator(model, prompts[self.rows], u)
        whole = self.processes.gather_rollout(mine, prompts, self.pad_id, lambda r: texts(r, self.tokenizer))
        mine = whole if self.processes.count == 1 else whole.rows(self.rows)
        self.tokens += int(whole.lengths.sum())
        return whole, mine

    # -- scoring ----------------------------------------------------------------------------------------------

    def score(self, followers: list[Follower], tau: float, graph: bool) -> None:
        """Rewards, log-probabilities, exact KL, entropy and values of each follower on its completions."""
        config, gather = self.config, self.processes.gather
        parts: dict[str, list[Any]] = {f.role: [] for f in followers}
        with torch.set_grad_enabled(graph), precision(config.dtype, self.processes.device):
            for rows in self._parts():
                law: tuple[Rollout, Tensor] | None = None
                for f in followers:
                    part = self._part(f.mine, rows)
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
        self._rewards(followers)
        for f in followers:
            self._finite("reward", f.reward)
            self._finite("log-probability", f.logp)

    def _rewards(self, followers: list[Follower]) -> None:
        theta, theta_l = followers[0], followers[-1]
        with torch.no_grad():
            for f in followers:
                if f is theta_l and f is not theta and f.rollout is theta.rollout:
                    f.reward = theta.reward
                    continue
                with self._shifted(f.role):
                    f.reward = self.processes.gather(self._reward_rows(f.mine))

    def _reward_rows(self, rollout: Rollout) -> Tensor:
        with precision(self.config.dtype, self.processes.device):
            parts = [self.roles.rewards(self._part(rollout, rows)) for rows in self._parts()]
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

    def _gold(self, theta: Follower, theta_l: Follower) -> dict[str, Tensor]:
        """Gold scores of each follower's completions, by role; a label each when f is made of them."""
        if self.gold is None:
            return {}
        found = {}
        for f in (theta, theta_l):
            if f.rollout is theta.rollout and "policy" in found:
                found[f.role] = found["policy"]
                continue
            mine = call_reward_function(self.gold, f.mine, "gold")
            found[f.role] = self.processes.gather(mine.to(f.logp))
        return found

    # -- the upper level --------------------------------------------------------------------------------------

    def _fresh_labels(self) -> int:
        """How many pairs (or gold scores) the judge may still be asked for in this iteration."""
        config, left = self.config, math.inf
        if config.label_budget:
            left = config.label_budget - self.labels
        if self.objective.needs_gold:
            return config.batch if left >= config.batch else 0
        return int(min(config.pairs_per_step, left)) if self.objective.needs_pairs else 0

    def upper(
        self, f: Follower, ratios: estimators.Ratios | None, gold: dict[str, Tensor], k: int
    ) -> tuple[Upper | None, Sample | None]:
        """f and its gradients on the penalised policy's completions, with fresh labels while the budget lasts."""
        fresh = self._fresh_labels()
        known = self.replay or self.objective.needs_stored
        if not fresh and (self.objective.needs_gold or (self.objective.needs_pairs and not known)):
            return None, None  # the labels are spent and nothing else tells of f: x stays where it is
        pairs = (
            choose_pairs(f.rollout.group, fresh, self.config.seed, k) if self.objective.needs_pairs else None
        )
        pairs = self._judge(f.rollout, pairs) if pairs is not None else torch.empty(0, 2, dtype=torch.long)
        if self.objective.needs_gold:
            self.labels += f.rollout.size
        sample = self._sample(f.rollout, f.reward, ratios, gold.get(f.role), pairs, k)
        upper = self._evaluate(sample)
        if self.config.replay_pairs or self.config.method == "fixed_reward":
            ids = f.rollout.completion_ids()
            self.replay += [(f.rollout.prompts[i], tuple(ids[i]), tuple(ids[j])) for i, j in pairs.tolist()]
        return upper, sample

    def _sample(
        self,
        rollout: Any,
        reward: Tensor,
        ratios: estimators.Ratios | None,
        gold: Tensor | None,
        pairs: Tensor,
        k: int,
    ) -> Sample:
        config = self.config
        weights = torch.ones_like(reward) if ratios is None else ratios.sequence
        fixed_batch = 2 * config.pairs_per_step if config.method == "fixed_reward" else 0
        stored, stored_total = self._drawn(
            self.stored if self.objective.needs_stored else [], config.pairs_per_step, STORED, k
        )
        replayed, replayed_total = self._drawn(self.replay, config.replay_pairs or fixed_batch, REPLAY, k)
        return Sample(
            rollout, reward.clone().requires_grad_(), weights, gold, pairs.to(reward.device), self.roles.rewards,
            stored, stored_total, replayed, replayed_total, k,
        )  # fmt: skip

    def _evaluate(self, sample: Sample) -> Upper:
        with self.roles.model("reward"), precision(self.config.dtype, self.processes.device):
            upper = self.objective.evaluate(sample)
        if self.processes.count > 1:
            share = torch.tensor([upper.share], dtype=torch.float64, device=self.processes.device)
            self.processes.add([share])
            upper.share = float(share)
        upper.value, upper.share = upper.value + upper.share, 0.0
        self._finite("upper objective's bonus", upper.bonus)
        if upper.loss is not None:
            self._finite("upper objective", upper.loss)
        return upper

    def _judge(self, rollout: Rollout, pairs: Tensor) -> Tensor:
        """The pairs with the preferred completion first; unanswered ones are dropped."""
        answers = torch.full((len(pairs) + 1,), -1, dtype=torch.long)
        failure: Exception | None = None
        if self.processes.main:
            try:
                answers[:-1] = ask(self.judge, rollout, pairs)
                answers[-1] = 0
            except Exception as error:  # told to the other processes first, or they would wait for ever
                failure = error
        answers = self.processes.from_main(answers.to(self.processes.device)).cpu()
        if failure is not None:
            raise failure
        if int(answers[-1]) == -1:
            raise LabelsPending("the main process has no labels for this iteration")
        answers = answers[:-1]
        self.labels += len(pairs)
        kept = answers >= 0
        swapped = torch.where(answers[:, None] == 1, pairs.flip(1), pairs)
        return swapped[kept]

    def _drawn(
        self, pairs: list[setup.Pair], count: int, stream: int, k: int
    ) -> tuple[tuple[Rollout, Rollout] | None, int]:
        """A seeded draw of stored pairs: this process's share as two rollouts, and the number in all."""
        if not pairs or not count:
            return None, 0
        random = np.random.default_rng([self.config.seed, stream, k])
        chosen = random.choice(len(pairs), size=min(count, len(pairs)), replace=False)
        mine = [pairs[i] for i in chosen[self.processes.part(len(chosen))]]
        if not mine:
            return None, len(chosen)
        device = self.processes.device
        sides = ([(p, a) for p, a, _ in mine], [(p, b) for p, _, b in mine])
        first, second = (from_pairs(side, self.pad_id, device, self.tokenizer) for side in sides)
        return (first, second), len(chosen)

    # -- estimators -------------------------------------------------------------------------------------------

    def _ratios(self, theta: Follower, theta_l: Follower) -> estimators.Ratios | None:
        """Importance of theta's completions for theta^L; None when each has its own."""
        if theta_l is theta or theta_l.rollout is not theta.rollout:
            return None
        config = self.config
        return estimators.importance(
            theta.logp, theta_l.logp, theta.rollout.mask, config.ratio, config.ratio_clip
        )

    def _scale(self, theta: Follower) -> Tensor | None:
        """[N] weight of each completion in J; group normalisation takes theta's scale for both followers."""
        if self.config.credit != "group_norm":
            return None
        return estimators.group_scale(theta.reward - theta.cost.sum(1), theta.rollout.group)

    def _penalty(
        self, followers: list[Follower], ratios: estimators.Ratios | None, upper: Upper | None, at: Any,
        scale: Tensor | None,
    ) -> list[Tensor] | None:  # fmt: skip
        """[N] for each distinct rollout: what multiplies grad_x r_i in (1/w)(E_pi - E_pi^L)[grad_x r]."""
        if self.config.method not in ("bilevel", "nested"):
            return None
        theta = followers[0]
        size = theta.rollout.size
        if self.config.estimator == "tilted":
            if upper is None:
                return None
            return [estimators.tilted_coefficients(upper.bonus, at.tau, self._groups(theta)) / size]
        if ratios is not None:
            return [estimators.penalty_coefficients(ratios.change, at.w, scale) / size]
        ones = torch.ones_like(theta.reward) if scale is None else scale
        return [ones / (at.w * size), -ones / (at.w * size)]

    def _groups(self, f: Follower) -> Tensor:
        """[N] whose completions are compared: those of one prompt, or of the batch when each prompt has one."""
        return f.rollout.group if self.config.group > 1 else torch.zeros_like(f.rollout.group)

    def credit(
        self, followers: list[Follower], ratios: estimators.Ratios | None, upper: Upper | None, at: Any,
        scale: Tensor | None,
    ) -> None:  # fmt: skip
        """Advantages of both followers; theta^L is paid w times the upper objective's bonus as well."""
        config = self.config
        for f in followers:
            f.total = f.reward if scale is None else scale * f.reward
            cost = f.cost if scale is None else scale[:, None] * f.cost
            mask = f.rollout.mask
            f.weight, weights = mask, None
            if f.role == "policy_l" and config.method != "finite_difference":
                if upper is not None:
                    f.total = f.total + at.w * upper.bonus
                if ratios is not None:
                    f.weight = ratios.weight
                    weights = ratios.sequence if config.ratio == "sequence" else None
            if self.recipe is not None:
                f.advantage = self._recipe_advantage(f, followers[0], cost)
                continue
            group = self._groups(f)
            f.advantage, f.targets = estimators.advantages(
                f.total, cost, mask, group, credit="leave_one_out" if config.credit == "group_norm" else config.credit,
                level=config.level, cost_is_sampled=config.kl_estimator == "k1", weights=weights, values=f.values,
                lam=config.gae_lambda,
            )  # fmt: skip

    def _recipe_advantage(self, f: Follower, theta: Follower, cost: Tensor) -> Tensor:
        """[N, T] advantage times weight by the recipe; the weights are theta's, for both followers."""
        mask = f.rollout.mask.bool()
        # an exact cost is that of a state: it is the doing of the token before
        paid = cost if self.config.kl_estimator == "k1" else torch.nn.functional.pad(cost[:, 1:], (0, 1))
        position = torch.arange(mask.shape[1], device=mask.device)
        end = position == f.rollout.lengths[:, None] - 1
        batch = Batch.make(
            mask, f.total[:, None] * end - paid * mask, f.rollout.group, truncated=~f.rollout.ended,
            done=f.rollout.ended, logp=f.logp, old=f.logp, ref=f.reference, entropy=f.entropy, kl=f.kl, iteration=self.step,
            **({"value": f.values} if f.values is not None else {}),
        )  # fmt: skip
        prepared = self.recipe.prepare(batch)
        if f is theta:
            self._recipe_weight = prepared.weight
        if f.values is not None:
            f.targets = value_targets(prepared)
        return prepared.advantage if self._recipe_weight is None else prepared.advantage * self._recipe_weight

    # -- the lower level --------------------------------------------------------------------------------------

    def learn(self, followers: list[Follower], at: Any, scale: Tensor | None, k: int) -> dict[str, float]:
        """Critics regress on their targets, theta ascends J, theta^L ascends J - w f."""
        config, norms = self.config, {}
        policies = [f.role for f in followers]
        critics = [f.critic for f in followers if f.critic]
        for _ in range(config.epochs):
            for optimizer in (self.optimizers["policies"], self.optimizers.get("critics")):
                if optimizer is not None:
                    optimizer.zero_grad(set_to_none=True)
            for rows in self._parts():
                for f in followers:
                    self._backward(f, rows, at.tau, scale)
            norms |= self._apply("policies", policies, at.alpha, k)
            if critics:
                norms |= self._apply("critics", critics, at.beta, k)
        return norms

    def _backward(self, f: Follower, rows: slice, tau: float, scale: Tensor | None) -> None:
        """Gradients of one follower and its critic on some of this process's rows."""
        config = self.config
        here = slice(self.rows.start + rows.start, self.rows.start + rows.stop)
        part = self._part(f.mine, rows)
        weight, mask = f.weight[here], part.mask
        with self.roles.model(f.role), precision(config.dtype, self.processes.device):
            own = f.own if self.one_pass else self._statistics(f.role, part, self._reference_law(part))
            direct = self._direct(own, f.reference[here], tau)
            if direct is not None and scale is not None:
                direct = direct * scale[here, None]
            loss = estimators.policy_loss(
                own.logp, f.logp[here], f.advantage[here], weight, direct, mask, config.clip, f.rollout.size
            )
            self._finite(f"loss of {f.role}", loss)
            loss.backward()
        if f.critic:
            with self.roles.model(f.critic), precision(config.dtype, self.processes.device):
                values = f.own_values if self.one_pass else self.roles.values(f.critic, part)
                loss = estimators.value_loss(
                    values, f.targets[here], weight, mask, float(f.rollout.mask.sum())
                )
                self._finite(f"loss of {f.critic}", loss)
                loss.backward()

    def _direct(self, own: TokenStatistics, reference: Tensor, tau: float) -> Tensor | None:
        """tau times the regulariser with a graph, for the kinds whose gradient at each visited prefix is known."""
        config = self.config
        if config.kl_estimator == "exact":
            return tau * (own.kl if config.regularizer == "kl" else -own.entropy)
        if config.kl_estimator == "k3":
            return tau * estimators.sampled_kl(own.logp, reference, "k3")
        return None

    def _apply(self, kind: str, roles: Sequence[str], step: float, k: int) -> dict[str, float]:
        """Sum gradients over processes, bound their norm, and take the optimiser's step; returns the norms.

        Both followers are scaled by one factor, that of the larger gradient.
        """
        norms = {}
        for role in roles:
            parameters = list(self.roles.parameters(role).values())
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
            grads = [p.grad for p in parameters]
            self.processes.add(grads)
            norms[role] = _norm(grads)
            self._finite(f"gradient of {role}", torch.tensor(norms[role]), k)
        bound, largest = self.config.clip_norm, max(norms.values())
        optimizer = self.optimizers[kind]
        for group in optimizer.param_groups:
            group["lr"] = step
            if bound and largest > bound:
                torch._foreach_mul_([p.grad for p in group["params"]], bound / largest)
        optimizer.step()
        return norms

    # -- the hyper-gradient -----------------------------------------------------------------------------------

    def hyper_gradient(
        self,
        followers: list[Follower],
        coefficients: list[Tensor] | None,
        upper: Upper | None,
        sample: Sample | None,
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """grad_x f and (1/w)(E_pi - E_pi^L)[grad_x r], each as one tensor a parameter, summed over processes.

        None when f is unknown (labels spent and nothing to replay).
        """
        if upper is None:
            return None
        parameters = list(self.roles.parameters("reward").values())
        direct = [torch.zeros_like(p) for p in parameters]
        penalty = [torch.zeros_like(p) for p in parameters]
        leaf = None
        if upper is not None and upper.loss is not None and upper.loss.requires_grad:
            with self.roles.model("reward"):
                leaf, *grads = torch.autograd.grad(
                    upper.loss, [sample.rewards, *parameters], allow_unused=True
                )
            _accumulate(direct, grads)
        rollouts = _distinct(followers)
        for f in rollouts:
            c = coefficients[rollouts.index(f)] if coefficients else None
            g = leaf if f is rollouts[-1] else None
            if c is None and (g is None or not bool(g.any())):
                continue
            for rows in self._parts():
                here = slice(self.rows.start + rows.start, self.rows.start + rows.stop)
                with self.roles.model("reward"), precision(self.config.dtype, self.processes.device):
                    r = self.roles.rewards(self._part(f.mine, rows)).to(f.reward.dtype)
                    if g is not None and bool(g[here].any()):
                        both = (r * g[here]).sum()
                        _accumulate(direct, torch.autograd.grad(both, parameters, retain_graph=c is not None,
                                                                allow_unused=True))  # fmt: skip
                    if c is not None:
                        _accumulate(
                            penalty, torch.autograd.grad((r * c[here]).sum(), parameters, allow_unused=True)
                        )
        self.processes.add([*direct, *penalty])
        if self.config.x_penalty:
            for d, p in zip(direct, parameters, strict=True):
                d.add_(2 * self.config.x_penalty * p.detach())
        return direct, penalty

    def descend(self, hyper: tuple[list[Tensor], list[Tensor]], zeta: float, k: int) -> dict[str, float]:
        """x <- x - zeta D."""
        direct, penalty = hyper
        parameters = list(self.roles.parameters("reward").values())
        norms = {"hyper_upper": _norm(direct), "hyper_penalty": _norm(penalty)}
        total = [a + b for a, b in zip(direct, penalty, strict=True)]
        norm = _norm(total)
        self._finite("hyper-gradient", torch.tensor(norm), k)
        bound = self.config.x_clip_norm
        for p, g in zip(parameters, total, strict=True):
            p.grad = g * (bound / norm) if bound and norm > bound else g
        optimizer = self.optimizers["reward"]
        optimizer.param_groups[0]["lr"] = zeta
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norms | {"hyper": norm}

    # -- baselines that need more than a switch ---------------------------------------------------------------

    @contextlib.contextmanager
    def _shifted(self, role: str) -> Iterator[None]:
        """finite_difference: theta answers x + c d, theta^L answers x - c d, on the same random direction d."""
        if self.config.method != "finite_difference":
            yield
            return
        parameters = list(self.roles.parameters("reward").values())
        kept = [p.detach().clone() for p in parameters]
        c = self.config.difference if role == "policy" else -self.config.difference
        with torch.no_grad():
            for p, d in zip(parameters, self.direction(self.step), strict=True):
                p.add_(c * d)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(parameters, kept, strict=True):
                    p.copy_(value)

    def direction(self, k: int) -> list[Tensor]:
        """Random signs, one for each number in x, fixed during the inner loop that iteration k belongs to.

        References:
            Spall, simultaneous perturbation stochastic approximation, 1992.
        """
        random = np.random.default_rng([self.config.seed, DIRECTION, k // self.config.inner_steps])
        parameters = self.roles.parameters("reward").values()
        return [torch.from_numpy(random.choice([-1.0, 1.0], size=tuple(p.shape))).to(p) for p in parameters]

    def difference(
        self, theta: Follower, theta_l: Follower, gold: dict[str, Tensor], k: int
    ) -> tuple[Upper | None, tuple[list[Tensor], list[Tensor]] | None]:
        """(f(x + c d, pi(x + c d)) - f(x - c d, pi(x - c d))) / (2 c) along d, from the last inner iteration."""
        ends = []
        for f in (theta, theta_l):
            with self._shifted(f.role):
                ends.append(self.upper(f, None, gold, k)[0])
        plus, minus = ends
        if plus is None or minus is None:
            return None, None
        slope = (plus.value - minus.value) / (2 * self.config.difference)
        parameters, d = self.roles.parameters("reward").values(), self.direction(k)
        lam = self.config.x_penalty
        direct = [slope * e + 2 * lam * p.detach() for e, p in zip(d, parameters, strict=True)]
        return plus, (direct, [torch.zeros_like(e) for e in d])

    def _fit_only(self, k: int, zeta: float, began: float) -> dict[str, float]:
        """fixed_reward with no fresh labels to be had: x is fitted on the pairs there are, without rollouts."""
        device, dtype = self.processes.device, next(iter(self.roles.parameters("reward").values())).dtype
        sample = self._sample(None, torch.zeros(0, device=device, dtype=dtype), None, None,
                              torch.empty(0, 2, dtype=torch.long), k)  # fmt: skip
        upper = self._evaluate(sample)
        norms: dict[str, float] = {}
        if upper.loss is not None:
            parameters = list(self.roles.parameters("reward").values())
            direct = [torch.zeros_like(p) for p in parameters]
            with self.roles.model("reward"):
                _accumulate(direct, torch.autograd.grad(upper.loss, parameters, allow_unused=True))
            self.processes.add(direct)
            for d, p in zip(direct, parameters, strict=True):
                d.add_(2 * self.config.x_penalty * p.detach())
            norms = self.descend((direct, [torch.zeros_like(d) for d in direct]), zeta, k)
        return self._metrics(k, self.schedules.at(k), [], None, {}, upper, norms, began)

    # -- what is measured -------------------------------------------------------------------------------------

    def _metrics(
        self, k: int, at: Any, followers: list[Follower], ratios: estimators.Ratios | None, gold: dict[str, Tensor],
        upper: Upper | None, norms: Mapping[str, float], began: float,
    ) -> dict[str, float]:  # fmt: skip
        """One line of `metrics.jsonl`; every key is a metric of `bilevel_rl.metrics`. What is unknown is left out."""
        seconds = time.perf_counter() - began
        line: dict[str, float] = {
            "iteration": k + 1, "samples": self.tokens, "labels": self.labels,
            "zeta": at.zeta, "alpha": at.alpha, "beta": at.beta, "w": at.w, "tau": at.tau,
        }  # fmt: skip
        if followers:
            theta, theta_l = followers[0], followers[-1]
            y, mask = theta.rollout, theta.rollout.mask
            made = sum(int(f.rollout.lengths.sum()) for f in _distinct(followers))
            line |= {
                "learned_reward": float(theta.reward.mean()),
                "kl": float(theta.kl.sum(1).mean()),
                "entropy": float(theta.entropy.sum() / mask.sum()),
                "length": float(y.lengths.double().mean()),
                "truncated": float((~y.ended).double().mean()),
                "tokens_per_second": made / seconds,
            }
            if "policy" in gold:
                line["gold"] = float(gold["policy"].mean())
            if theta_l is not theta and self.config.method != "finite_difference":
                line["policy_gap"] = self._gap(theta, theta_l, ratios)
            if ratios is not None:
                log_rho = ((theta_l.logp - theta.logp) * mask).sum(1)
                line["ess"] = ratios.effective
                line["ratio_clipped"] = ratios.clipped
                line["divergence"] = float((ratios.sequence - 1 - log_rho.clamp(-30, 30)).mean().clamp(min=0))
            self.last = theta, gold.get("policy")
        if upper is not None and math.isfinite(upper.value):
            penalty = self.config.x_penalty * self._x_squared() if self.config.x_penalty else 0.0
            line["upper"] = upper.value + penalty
        names = {"policy": "gradient_policy", "policy_l": "gradient_policy_l", "critic": "gradient_critic",
                 "critic_l": "gradient_critic_l"}  # fmt: skip
        line |= {names.get(key, key): value for key, value in norms.items()}
        line["memory"] = self._memory()
        line["seconds"] = seconds
        return line

    def _gap(self, theta: Follower, theta_l: Follower, ratios: estimators.Ratios | None) -> float:
        """J_tau(pi) - J_tau(pi^L) by sampling."""
        returns = theta.reward - theta.cost.sum(1)
        if ratios is None:
            return float(returns.mean() - (theta_l.reward - theta_l.cost.sum(1)).mean())
        returns_l = theta.reward - theta_l.cost.sum(1)
        weights = ratios.sequence / ratios.sequence.mean()
        return float((returns - weights * returns_l).mean())

    def _x_squared(self) -> float:
        return sum(float(p.detach().square().sum()) for p in self.roles.parameters("reward").values())

    def _memory(self) -> float:
        """Peak memory of this process so far, in GiB (of the accelerator where there is one)."""
        if self.processes.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    def _finite(self, quantity: str, value: Tensor, k: int | None = None) -> None:
        if not bool(torch.isfinite(value.detach()).all()):
            kind = "NaN" if bool(torch.isnan(value.detach()).any()) else "infinity"
            raise NonFiniteState(
                message(f"{quantity}, iteration {self.step if k is None else k}", kind, "every quantity must stay finite",
                        "Lower alpha or zeta or raise w, then continue from the last checkpoint with "
                        "`bilevel-rl llm resume`, or start again")
            )  # fmt: skip

    # -- the run folder ---------------------------------------------------------------------------------------

    def _begin(self) -> Path | None:
        """The run folder with its header, on the main process; None when nothing is written."""
        if not self.config.out or not self.processes.main:
            return None
        out = make_folder(self.config.out)
        if self.step == 0:
            for name in ("metrics.jsonl", "samples.jsonl"):
                write_bytes(out / name, b"")
            # an earlier run's checkpoint does not belong to these metrics
            (out / "checkpoint" / "state.json").unlink(missing_ok=True)
        self._status(out, "running", "")
        header = Run(
            kind="llm", name=self.config.method, problem=self.problem, config=self.config.asdict(), trace={}, status={},
            provenance=provenance(), seed=self.config.seed,
        ).header()  # fmt: skip
        if not (self.step and (out / "run.json").exists()):
            write_json(out / "run.json", header)
        return out

    def _status(self, out: Path | None, state: str, text: str) -> None:
        if out is not None:
            write_json(out / "status.json", {"state": state, "message": text, "iteration": self.step})

    def _record(self, out: Path | None, line: dict[str, float]) -> None:
        self.history.append(line)
        self._warn(line)
        if out is not None:
            append_line(out / "metrics.jsonl", line)
            every = self.config.samples_every
            if every and (self.step % every == 0 or self.step == 1 or self.step == self.config.steps):
                for row in self.table():
                    append_line(out / "samples.jsonl", {"iteration": self.step, **row})
        self.callbacks.log(self.step, line)
        self.callbacks.event("step_end", self.step)

    def _warn(self, line: dict[str, float]) -> None:
        """Say once when the entropy has collapsed, or the importance ratios tell nothing any more."""
        first = next((old["entropy"] for old in self.history if "entropy" in old), None)
        signs = {
            "entropy": first is not None and line.get("entropy", math.inf) < 0.1 * first,
            "ess": line.get("ess", 1.0) < 0.1,
        }
        texts = {
            "entropy": "the policy's entropy is below a tenth of what it was at the start: raise tau, or lower alpha",
            "ess": "fewer than a tenth of the importance ratios count: lower w or alpha, or set estimator=tilted",
        }
        for key, there in signs.items():
            if there and key not in self.warned and self.processes.main:
                self.warned.add(key)
                log.warning("iteration %d: %s", self.step, texts[key])

    def table(self) -> list[dict[str, Any]]:
        """The sample table: prompt, completion, learned reward and gold score of the last iteration's first rows."""
        if not hasattr(self, "last"):
            return []
        theta, gold = self.last
        rows = range(min(self.config.samples, theta.rollout.size))
        return [
            {
                "prompt": theta.rollout.prompts[i].text, "completion": theta.rollout.texts[i],
                "reward": float(theta.reward[i]), "gold": None if gold is None else float(gold[i]),
            }
            for i in rows
        ]  # fmt: skip

    def save(self, folder: str | Path | None = None) -> None:
        """Write a checkpoint now, to `config.out/checkpoint` unless a folder is given."""
        folder = folder or (Path(self.config.out) / "checkpoint" if self.config.out else None)
        if folder is not None and self.processes.main:
            tensors = dict(self.roles.state())
            for name, optimizer in self.optimizers.items():
                tensors |= checkpoint.optimizer_tensors(name, optimizer)
            replay = [[list(p.ids), list(a), list(b)] for p, a, b in self.replay]
            state = {
                "config": self.config.asdict(), "labels": self.labels, "tokens": self.tokens, "replay": replay,
                "rng": checkpoint.rng_state(),
            }  # fmt: skip
            checkpoint.save_checkpoint(folder, self.step, tensors, state)
        self.processes.barrier()
        self.callbacks.event("save", self.step)

    def resume(self, folder: str | Path | None = None) -> None:
        """Continue from a checkpoint, bit for bit; metrics after it are cut off.

        Raises:
            RunNotFound: no checkpoint there.
            InvalidConfig: a checkpoint of another configuration or model.
        """
        tensors, state = checkpoint.load_checkpoint(folder or Path(self.config.out) / "checkpoint")
        mine, theirs = self.config.asdict(), state["config"]
        free = {"steps", "out", "save_every", "samples_every", "samples", "device"}
        odd = sorted(k for k in mine.keys() | theirs.keys() if k not in free and mine.get(k) != theirs.get(k))
        if odd:
            raise InvalidConfig(
                message("resume", f"{odd[0]}={mine.get(odd[0])!r} where the checkpoint has {theirs.get(odd[0])!r}"
                        + (f" ({len(odd) - 1} more differ)" if odd[1:] else ""),
                        f"only {', '.join(sorted(free))} may change", "Resume with the run's own configuration")
            )  # fmt: skip
        own = {key: value for key, value in tensors.items() if not key.startswith("optimizer/")}
        self.roles.load(own)
        for name, optimizer in self.optimizers.items():
            checkpoint.load_optimizer(name, optimizer, tensors)
        self.step, self.labels, self.tokens = state["step"], state["labels"], state["tokens"]
        known = {p.ids: p for p in self.prompts}
        self.replay = [
            (known.get(tuple(p), Prompt(tuple(p), list(p))), tuple(a), tuple(b))
            for p, a, b in state["replay"]
        ]
        checkpoint.set_rng_state(state["rng"])
        self.history = []
        if self.config.out and folder is None:
            out = Path(self.config.out)
            self.history = _cut(out / "metrics.jsonl", self.step, write=self.processes.main)
            _cut(out / "samples.jsonl", self.step, write=self.processes.main)

    # -- results ----------------------------------------------------------------------------------------------

    def export_policy(self, folder: str | Path) -> None:
        """Write theta as a transformers model (full) or a PEFT adapter (lora), with the tokenizer."""
        from bilevel_rl.llm.weights import export_policy

        if self.processes.main:
            export_policy(self.roles, folder, self.tokenizer)

    def export_reward(self, folder: str | Path) -> None:
        """Write x as an `AutoModelForSequenceClassification`, with the tokenizer.

        Raises:
            InvalidConfig: a reward model that is not a classifier.
        """
        from bilevel_rl.llm.weights import export_reward

        if self.processes.main:
            export_reward(self.roles, folder, self.tokenizer)

    # -- rows -------------------------------------------------------------------------------------------------

    def _parts(self) -> list[slice]:
        """This process's rows in parts of at most `micro_batch`."""
        own = self.rows.stop - self.rows.start
        size = self.config.micro_batch or own
        return [slice(i, min(i + size, own)) for i in range(0, own, size)]

    def _part(self, rollout: Rollout, rows: slice) -> Rollout:
        return rollout if rows.stop - rows.start == rollout.size else rollout.rows(rows)


def _distinct(followers: Sequence[Follower]) -> list[Follower]:
    return [f for i, f in enumerate(followers) if all(f.rollout is not g.rollout for g in followers[:i])]


def _accumulate(into: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for total, grad in zip(into, grads, strict=True):
        if grad is not None:
            total.add_(grad)


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors])))


def _cut(path: Path, step: int, write: bool) -> list[dict[str, Any]]:
    """Lines up to iteration `step`; the file is cut to them."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            break
        if line["iteration"] > step:
            break
        lines.append(line)
    if write:
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines
