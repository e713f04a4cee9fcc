r"""The bi-level trainer: one loop over two policies, two critics, the reward model and a frozen reference.

One iteration k, on a batch of prompts (docs/llm/trainer.md has the mathematics):

    y ~ pi_theta, y_ ~ pi_theta^L            `sample`     (shared: y serves both, with ratios rho)
    r_x(y), KL, log-probabilities, values    `score`
    f and its gradients on y_                `upper`
    critics, theta and theta^L               `learn`      theta^L ascends J - w f
    theta^L <- theta^L + kappa (theta - theta^L)  `couple`
    x <- x - zeta D                          `descend`    D = grad_x f + (1/w) (E_pi - E_pi^L)[grad_x r]

What a line needs is next door: `followers` scores and differentiates the policies, `leader` asks for labels and
evaluates f, `estimators` has the formulas, `measures` and `run_folder` say and keep what happened.

What it is not: it knows no task, draws no figure, loads no data; those are callers' business.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels import checkpoint, digests, estimators, guards
from bilevel_rl.levels.callbacks import Callbacks
from bilevel_rl.levels.coupled_adam import CoupledAdam
from bilevel_rl.levels.objectives import Sample, Upper, make_objective
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.levels.step_rules import StepRule
from bilevel_rl.llm import measures, recipes, run_folder, setup
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.prompts import Prompt, as_prompts, draw
from bilevel_rl.llm.differences import Differences
from bilevel_rl.llm.followers import Follower, Lower, distinct
from bilevel_rl.llm.judges.asking import LabelsPending
from bilevel_rl.llm.leader import Leader, check_sources
from bilevel_rl.llm.roles import sharding
from bilevel_rl.llm.roles.backend import CRITICS, POLICIES, REWARD
from bilevel_rl.llm.sampling.gathering import gather
from bilevel_rl.llm.sampling.rollout import Rollout, texts
from bilevel_rl.llm.sampling.sampler import Generator, Sampler, uniforms
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.records import locked, make_folder

log = logging.getLogger(__name__)
ROLLOUT, ROLLOUT_L = 0x20, 0x21  # random streams, beside (seed, step); more in `leader` and `differences`


class BilevelTrainer:
    """Fine-tune a language model with a reward model that answers for what its optimal policy writes.

    Args:
        config: every option; see `Config`.
        policy: a causal language model (any module with the calling convention of transformers' causal models), or
            a hub id or folder; None: `config.policy`.
        reward: a module that maps a `Rollout` to [N] rewards, an `AutoModelForSequenceClassification`, a folder or
            hub id, or "classifier"/"linear" for a head on the policy's body; or reward functions of TRL's signature
            (one, or a sequence: they are added, and their weights are x); None: `config.reward`.
        prompts: strings, token ids, conversations, or rows with the key `prompt`.
        tokenizer: tokenizer of the policy; None only when prompts are token ids.
        judge: pairwise judge: an object with TRL's `judge(prompts, completions, shuffle_order=...)`, or such a
            callable: for each prompt the index (0 or 1) of the preferred completion, -1 for no answer.
        gold: gold scorer with TRL's reward-function signature.
        preferences: stored preferences: rows with `prompt`, `chosen`, `rejected`.
        objective: a user's own upper objective; None: `config.objective`.
        reference: the frozen reference; None: a copy of the policy as it is now.
        generator: samples completions; None: our own sampler.
        recipe: a `Recipe`, a name or a composition (`policy_gradient.compose`) as the lower level, in place of
            `config.credit`; None: `config.recipe`. Both followers get theta's selection and weights.
        fields: what the task knows of each response and components read, by field of `Batch`: functions of a
            `Rollout` that return [N] or [N, T] tensors (turn, state_key, duration, ...).
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
        recipe: Recipe | str | None = None,
        fields: Mapping[str, Callable[[Rollout], Tensor]] | None = None,
        callbacks: Sequence[Any] = (),
        resume: bool = False,
        problem: str = "language_model",
    ) -> None:
        config, recipe = recipes.with_recipe(config, recipe)
        self.config, self.schedules, self.problem = config, config.schedules, problem
        self.processes = Processes(config.device, sharding.asked())
        stored: list[setup.Pair] = []
        self.digests: dict[str, str] = {}
        failure: Exception | None = None
        try:  # nothing in here waits for another process, so that all hear of a failure
            policy, objective, stored = self._prepare(
                policy, reward, prompts, tokenizer, judge, gold, preferences, objective, reference, recipe, fields or {}
            )
            self.digests = self._digests(stored)
        except Exception as error:
            failure = error
        self.processes.agree(self.digests, failure)
        if self.processes.sharded:
            sharding.shard(self.roles)
        self.generator = generator or Sampler(
            self.stop_ids,
            self.pad_id,
            config.temperature,
            self.tokenizer,
            config.dtype,
            self.processes.together,
            self.roles.unheld,
        )
        names = self.roles.names
        # one optimiser for both followers: see `optimizers`
        self.optimizers = {
            kind: self._optimizer([name for name in among if name in names])
            for kind, among in (("policies", POLICIES), ("critics", CRITICS), ("reward", (REWARD,)))
            if among[0] in names and self.roles.parameters(among[0])
        }
        rows = config.micro_batch or self.share.own
        self.memory = setup.estimate_memory(config, self.roles, rows, self.vocabulary)
        # one pass with a graph does all, unless rows come in parts, the batch is used again, or an adapter would be
        # switched between a checkpointed forward pass and its backward pass (silently wrong gradients)
        lora_checkpoint = config.backend == "lora" and config.gradient_checkpointing
        in_parts = 0 < config.micro_batch < self.share.own
        self.one_pass = config.epochs == 1 and not lora_checkpoint and not in_parts
        chosen = self.recipe is not None and recipes.chooses(self.recipe)
        if chosen:
            self.one_pass = False  # the rows that are learned from are known after scoring
        self.differences = Differences(config, self.roles)
        self.lower = Lower(
            config,
            self.roles,
            self.processes,
            self.share,
            self.differences,
            self.one_pass,
            self.recipe is not None,
        )
        self.level = None
        if self.recipe is not None:
            if self.processes.sharded and chosen:
                raise InvalidConfig(
                    message("recipe", "select or demonstrations, with a base in pieces",
                            "every process must evaluate equally many rows", "Leave sharding or the selection out")
                )  # fmt: skip
            self.level = recipes.RecipeLevel(
                self.recipe, config, self.prompts, fields or {}, self.lower, self.tokenizer, self.stop_ids, self.pad_id,
                self._greedy,
            )  # fmt: skip
        self.leader = Leader(
            config,
            self.roles,
            self.processes,
            self.share,
            objective,
            judge,
            gold,
            stored,
            self.pad_id,
            self.tokenizer,
        )
        self.step, self.tokens, self.history = 0, 0, []
        self.warnings = measures.Warnings()
        self.folder = run_folder.RunFolder(config, problem, self.processes.main)
        self.callbacks = Callbacks(
            callbacks, config, policy, self.tokenizer, self.optimizers["policies"], self.processes.main
        )
        if resume:
            self.resume()
        elif self.processes.main:
            log.info("memory %s", self.memory)
            for sentence in self.schedules.broken_constraints():
                log.info("schedules outside the paper's conditions: %s", sentence)

    def _prepare(
        self, policy: Any, reward: Any, prompts: Iterable[Any], tokenizer: Any, judge: Any, gold: Any, preferences: Any,
        objective: Any, reference: Any, recipe: Recipe | None, fields: Mapping[str, Any],
    ) -> tuple[Any, Any, list[setup.Pair]]:  # fmt: skip
        """Check what was given and make the roles; the policy, f and the stored pairs."""
        config = self.config
        self.tokenizer = setup.load_tokenizer(config, policy, tokenizer)
        policy = setup.load_policy(config, policy)
        self.vocabulary = setup.vocabulary(policy)
        setup.check_vocabulary(policy, self.tokenizer)
        self.prompts = as_prompts(prompts, self.tokenizer, config.max_prompt_tokens, self.vocabulary)
        setup.check_context(config, policy, self.prompts)
        self.stop_ids = setup.stop_ids(config, policy, self.tokenizer)
        pad = getattr(self.tokenizer, "pad_token_id", None)
        self.pad_id = pad if pad is not None else self.stop_ids[0] if self.stop_ids else 0
        objective = objective if objective is not None else make_objective(config.objective)
        stored = setup.as_pairs(preferences, self.tokenizer, config, self.vocabulary, self.stop_ids)
        if config.method != "plain":
            check_sources(config, objective, judge, gold, stored)
        self.judge, self.gold = judge, gold
        self.recipe = recipe
        if recipe is not None:
            self.recipe = recipe.configured(recipes.setting(config, fields, self.stop_ids))
            head = callable(getattr(policy, "get_output_embeddings", None))
            recipes.check(self.recipe, config, fields, self.prompts, head, self.stop_ids)
        self.critics = config.uses_critics or (
            self.recipe is not None and "value" in recipes.needs(self.recipe)
        )
        mine = self.processes.share(config.prompts_per_step)
        self.share = Share(mine.start * config.group, mine.stop * config.group, config.micro_batch)
        self.roles = setup.make_roles(
            config, policy, reward, reference, self.processes.device, self.critics, self.tokenizer, self.prompts
        )
        return policy, objective, stored

    def _digests(self, stored: Sequence[setup.Pair]) -> dict[str, str]:
        """Fingerprints of what the run begins with: the same on every process, and when it is continued."""
        data = [[p.ids, p.text, dict(p.columns)] for p in self.prompts], [[p.ids, a, b] for p, a, b in stored]
        free = run_folder.FREE
        return {
            "configuration": digests.of_values({k: v for k, v in self.config.asdict().items() if k not in free}),
            "length": digests.of_values(self.config.steps), "data": digests.of_values(data),
            "initial weights": digests.of_tensors(self.roles.state()),
            "frozen weights": digests.of_tensors(self.roles.stood_on()),
        }  # fmt: skip

    @property
    def objective(self) -> Any:
        """f."""
        return self.leader.objective

    @objective.setter
    def objective(self, objective: Any) -> None:
        self.leader.objective = objective

    @property
    def labels(self) -> int:
        """Labels asked for so far."""
        return self.leader.labels

    @property
    def replay(self) -> list[setup.Pair]:
        """Pairs labelled so far, where they are used again."""
        return self.leader.replay

    def _optimizer(self, roles: Sequence[str]) -> torch.optim.Optimizer:
        groups = [list(self.roles.parameters(role).values()) for role in roles]
        if self.recipe is not None and self.recipe.step is not None and roles[0] in POLICIES:
            return StepRule(self.recipe.step, groups)
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
        self.folder.begin(self.step, self.digests)
        self.callbacks.event("train_begin", self.step)
        try:
            while self.step < self.config.steps and not self.callbacks.stop:
                self.callbacks.event("step_begin", self.step)
                before = self.tokens, self.labels, len(self.replay), checkpoint.random_states()
                with self._ahead():
                    line = self.iterate(self.step)
                self.step += 1
                self._record(line)
                due = self.config.save_every and self.step % self.config.save_every == 0
                if due or self.callbacks.save:
                    self.save()
        except LabelsPending as pending:
            # no weight of this iteration has moved yet
            self.tokens, self.leader.labels, pairs, states = before
            del self.replay[pairs:]
            checkpoint.set_random_states(states)
            self.save()
            self.folder.status("stopped", str(pending), self.step)
            return self.history
        except BaseException as error:
            state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            self.folder.status(state, str(error), self.step)
            raise
        self.save()
        self.folder.status("finished" if self.step >= self.config.steps else "stopped", "", self.step)
        self.callbacks.event("train_end", self.step)
        return self.history

    def _ahead(self) -> contextlib.AbstractContextManager[None]:
        """Some step rules sample at an extrapolated point, and step from the last one."""
        policies = self.optimizers["policies"]
        return policies.ahead() if isinstance(policies, StepRule) else contextlib.nullcontext()

    def iterate(self, k: int) -> dict[str, float]:
        """One iteration of the method; returns its metrics."""
        began, config, at = time.perf_counter(), self.config, self.schedules.at(k)
        moves, asks, zeta = self._plan(k)
        differs = config.method == "finite_difference"
        if not moves and not self.leader.fresh_labels():
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
        gold = self.leader.gold_scores(theta, theta_l)
        upper, sample = self.upper(theta_l, ratios, gold, k) if asks else (None, None)
        scale = self._scale(theta)
        coefficients = self._penalty(followers, ratios, upper, at, scale)
        hyper = None
        if zeta and differs:
            upper, hyper = self.difference(theta, theta_l, gold, k)
        elif zeta:
            hyper = self.leader.hyper_gradient(followers, coefficients, upper, sample)
        norms: dict[str, float] = {}
        if moves:
            self.credit(followers, ratios, upper, at, scale)
            norms = self.learn(followers, at, scale, k)
            self.couple()
        if hyper is not None:
            norms |= self.descend(hyper, zeta, k)
        return self._line(k, at, followers, ratios, gold, upper, norms, began)

    def _plan(self, k: int) -> tuple[bool, bool, float]:
        """Whether policies move, whether f is asked for, and the step of x (0: x stays)."""
        config = self.config
        if config.method == "plain":
            return True, False, 0.0
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
            Follower(role, critic if self.critics else "", whole, mine)
            for role, critic, (whole, mine) in names
        ]

    def _rollout(self, role: str, prompts: Sequence[Prompt], stream: int, k: int) -> tuple[Rollout, Rollout]:
        config = self.config
        u = uniforms(len(prompts), config.max_new_tokens, config.seed, stream, k)[self.share.rows]
        with self.roles.model(role) as model:
            mine = self.generator(model, prompts[self.share.rows], u)
        whole = gather(self.processes, mine, prompts, self.pad_id, lambda r: texts(r, self.tokenizer))
        mine = whole if self.processes.count == 1 else whole.rows(self.share.rows)
        self.tokens += int(whole.lengths.sum())
        return whole, mine

    # -- scoring and the upper level --------------------------------------------------------------------------

    def score(self, followers: list[Follower], tau: float, graph: bool) -> None:
        """Rewards, log-probabilities, exact KL, entropy and values of each follower on its completions."""
        self.lower.score(followers, tau, graph, self.step)

    def upper(
        self, f: Follower, ratios: estimators.Ratios | None, gold: dict[str, Tensor], k: int
    ) -> tuple[Upper | None, Sample | None]:
        """f and its gradients on the penalised policy's completions, with fresh labels while the budget lasts."""
        return self.leader.ask(f, ratios, gold, k)

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
        if self.config.credit != "group_norm" or self.level is not None:
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
        if self.level is not None:
            differs = config.method == "finite_difference"
            bonus = None if differs or upper is None else at.w * upper.bonus
            weight = None if differs or ratios is None else ratios.weight
            self.level.prepare(followers, bonus, weight, self.step / config.steps, self.step)
            return
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
            group = self._groups(f)
            f.advantage, f.targets = estimators.advantages(
                f.total, cost, mask, group, credit="leave_one_out" if config.credit == "group_norm" else config.credit,
                level=config.level, cost_is_sampled=config.kl_estimator == "k1", weights=weights, values=f.values,
                lam=config.gae_lambda,
            )  # fmt: skip

    # -- the lower level --------------------------------------------------------------------------------------

    def learn(self, followers: list[Follower], at: Any, scale: Tensor | None, k: int) -> dict[str, float]:
        """Critics regress on their targets, theta ascends J, theta^L ascends J - w f."""
        config, norms = self.config, {}
        policies = [f.role for f in followers]
        critics = [f.critic for f in followers if f.critic]
        rule = self.optimizers["policies"]
        halves = (0, 1) if isinstance(rule, StepRule) and rule.halves else (None,)
        for epoch in range(config.epochs):
            for optimizer in (rule, self.optimizers.get("critics")):
                if optimizer is not None:
                    optimizer.zero_grad(set_to_none=True)
            if self.level is None:
                for rows in self.share.parts():
                    for f in followers:
                        self.lower.backward(f, rows, at.tau, scale, self.step)
            for half in halves if self.level is not None else ():
                for f in followers:
                    self.lower.backward_ready(f, self.level.recipe, at.tau, epoch == 0, self.step, half)
                if half == 0:
                    rule.keep_half(self.processes.add)
            norms |= self.apply("policies", policies, at.alpha, k)
            if critics:
                norms |= self.apply("critics", critics, at.beta, k)
        if self.level is not None:
            self.level.finish(followers[0])
        return norms

    def _greedy(self, prompts: Sequence[Prompt]) -> Tensor:
        """[Q] rewards of the most likely completion, token by token, of each prompt (a baseline that costs tokens)."""
        law = self.tokenizer, self.config.dtype, bool, self.roles.unheld
        sampler = Sampler(self.stop_ids, self.pad_id, 1e-6, *law)
        with self.roles.model("policy") as model, torch.no_grad():
            best = sampler(
                model,
                prompts,
                torch.full((len(prompts), self.config.max_new_tokens), 0.5, dtype=torch.float64),
            )
            self.tokens += int(best.lengths.sum())
            return self.roles.rewards(best)

    @torch.no_grad()
    def couple(self) -> None:
        """theta^L <- theta^L + kappa (theta - theta^L), kappa = `config.coupling`.

        The hyper-gradient divides theta^L - theta by w. What one iteration's labels leave in theta^L would stay until
        the KL has pulled it out, about 1/(alpha tau) iterations later, and add up; the pull forgets it in 1/kappa.
        kappa = 0 is the paper's algorithm, kappa = 1 one look-ahead step.
        """
        if not self.config.coupling or not self.config.uses_penalised:
            return
        own, other = (self.roles.parameters(role).values() for role in ("policy_l", "policy"))
        for p_l, p in zip(own, other, strict=True):
            p_l.lerp_(p, self.config.coupling)

    def apply(self, kind: str, roles: Sequence[str], step: float, k: int) -> dict[str, float]:
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
            norms[role] = measures.norm(grads)
            guards.check_finite(f"gradient of {role}", torch.tensor(norms[role]), k)
        bound, largest = self.config.clip_norm, max(norms.values())
        optimizer = self.optimizers[kind]
        for group in optimizer.param_groups:
            group["lr"] = step
            if bound and largest > bound:
                torch._foreach_mul_([p.grad for p in group["params"]], bound / largest)
        optimizer.step()
        return norms

    # -- the hyper-gradient -----------------------------------------------------------------------------------

    def descend(self, hyper: tuple[list[Tensor], list[Tensor]], zeta: float, k: int) -> dict[str, float]:
        """x <- x - zeta D."""
        direct, penalty = hyper
        parameters = list(self.roles.parameters("reward").values())
        norms = {"hyper_upper": measures.norm(direct), "hyper_penalty": measures.norm(penalty)}
        total = [a + b for a, b in zip(direct, penalty, strict=True)]
        norm = measures.norm(total)
        guards.check_finite("hyper-gradient", torch.tensor(norm), k)
        bound = self.config.x_clip_norm
        for p, g in zip(parameters, total, strict=True):
            p.grad = g * (bound / norm) if bound and norm > bound else g
        optimizer = self.optimizers["reward"]
        optimizer.param_groups[0]["lr"] = zeta
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norms | {"hyper": norm}

    # -- baselines that need more than a switch ---------------------------------------------------------------

    def difference(
        self, theta: Follower, theta_l: Follower, gold: dict[str, Tensor], k: int
    ) -> tuple[Upper | None, tuple[list[Tensor], list[Tensor]] | None]:
        """f at x + c d and the slope along d, from the last inner iteration: see `differences`."""
        ends = []
        for f in (theta, theta_l):
            with self.differences.shifted(f.role, self.step):
                ends.append(self.upper(f, None, gold, k)[0])
        plus, minus = ends
        hyper = self.differences.slope(plus, minus, k)
        return (plus if hyper is not None else None), hyper

    def direction(self, k: int) -> list[Tensor]:
        """The random direction of the finite-difference baseline in iteration k."""
        return self.differences.direction(k)

    def _fit_only(self, k: int, zeta: float, began: float) -> dict[str, float]:
        """fixed_reward with no fresh labels to be had: x is fitted on the pairs there are, without rollouts."""
        upper, hyper = self.leader.stored_alone(k)
        norms = self.descend(hyper, zeta, k) if hyper is not None else {}
        return self._line(k, self.schedules.at(k), [], None, {}, upper, norms, began)

    # -- what is measured and kept ----------------------------------------------------------------------------

    def _line(
        self, k: int, at: Any, followers: list[Follower], ratios: estimators.Ratios | None, gold: dict[str, Tensor],
        upper: Upper | None, norms: Mapping[str, float], began: float,
    ) -> dict[str, float]:  # fmt: skip
        """One line of `metrics.jsonl`; what is unknown is left out."""
        seconds = time.perf_counter() - began
        line: dict[str, float] = {
            "iteration": k + 1, "samples": self.tokens, "labels": self.labels,
            "zeta": at.zeta, "alpha": at.alpha, "beta": at.beta, "w": at.w, "tau": at.tau,
        }  # fmt: skip
        if followers:
            theta, theta_l = followers[0], followers[-1]
            made = sum(int(f.rollout.lengths.sum()) for f in distinct(followers))
            gap = theta_l is not theta and self.config.method != "finite_difference"
            line |= measures.of_followers(theta, theta_l, made, ratios, gold.get("policy"), gap, seconds)
            self.last = theta, gold.get("policy")
        if upper is not None and math.isfinite(upper.value):
            parameters = self.roles.parameters("reward").values()
            squared = (
                sum(float(p.detach().square().sum()) for p in parameters) if self.config.x_penalty else 0.0
            )
            line["upper"] = upper.value + self.config.x_penalty * squared
        line |= {measures.NAMES.get(key, key): value for key, value in norms.items()}
        line["memory"] = measures.memory(self.processes.device)
        line["seconds"] = seconds
        return line

    def _record(self, line: dict[str, float]) -> None:
        self.history.append(line)
        self.warn(line)
        self.folder.line(line)
        if self.folder.wants_samples(self.step):
            self.folder.samples(self.step, self.table())
        self.callbacks.log(self.step, line)
        self.callbacks.event("step_end", self.step)

    def warn(self, line: Mapping[str, float]) -> None:
        """Log signs of trouble in a line of metrics, each once."""
        if self.processes.main:
            self.warnings.look(self.step, self.history, line)

    def table(self) -> list[dict[str, Any]]:
        """The sample table: prompt, completion, learned reward and gold score of the last iteration's first rows."""
        return measures.sample_table(*self.last) if hasattr(self, "last") else []

    def save(self, folder: str | Path | None = None) -> None:
        """Write a checkpoint now, to `config.out/checkpoint` unless a folder is given."""
        folder = folder or (Path(self.config.out) / "checkpoint" if self.config.out else None)
        if folder is not None and self.processes.main:
            run_folder.save(self, folder)
        self.processes.barrier()
        self.callbacks.event("save", self.step)

    def resume(self, folder: str | Path | None = None) -> None:
        """Continue from a checkpoint, bit for bit; metrics after it are cut off.

        Raises:
            RunNotFound: no checkpoint there.
            InvalidConfig: a checkpoint of another configuration or model.
        """
        run_folder.load(self, folder or Path(self.config.out) / "checkpoint")
        self.history = []
        if self.config.out and folder is None:
            out, write = Path(self.config.out), self.processes.main
            self.history = run_folder.cut(out / "metrics.jsonl", self.step, write)
            run_folder.cut(out / "samples.jsonl", self.step, write)

    # -- results ----------------------------------------------------------------------------------------------

    def export_policy(self, folder: str | Path) -> None:
        """Write theta as a transformers model (full) or a PEFT adapter (lora), with the tokenizer."""
        from bilevel_rl.llm.roles.weights import export_policy

        if self.processes.main:
            export_policy(self.roles, folder, self.tokenizer)

    def export_reward(self, folder: str | Path) -> None:
        """Write x as an `AutoModelForSequenceClassification`, with the tokenizer.

        Raises:
            InvalidConfig: a reward model that is not a classifier.
        """
        from bilevel_rl.llm.roles.weights import export_reward

        if self.processes.main:
            export_reward(self.roles, folder, self.tokenizer)
