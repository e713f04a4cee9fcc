r"""The loop of two levels: one iteration over two policies, their critics, x and a frozen reference.

One iteration k (docs/llm/trainer.md has the mathematics):

    y ~ pi_theta, y_ ~ pi_theta^L            `sample`     (shared: y serves both, with ratios rho)
    r_x(y), KL, log-probabilities, values    `score`
    f and its gradients on y_                `upper`      with fresh labels: `ask`
    how x moves                                           D = grad_x f + (1/w) (E_pi - E_pi^L)[grad_x r]
    critics, theta and theta^L               `learn`      theta^L ascends J - w f
    theta^L <- theta^L + kappa (theta - theta^L)  `couple`
    x <- x - zeta D                          `descend`

What a line needs is next door: `methods` say in which way, `followers` score, `learner` differentiates, `leader` asks for
labels and evaluates f, `estimators` has the formulas, `measures` and `run_folder` say and keep what happened.

What it is not: it knows no text and no environment (an `Engine` does), and no task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bilevel_rl import signals
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels import checkpoint, guards, learner, measures, methods, requirements, run_folder
from bilevel_rl.levels.callbacks import Callbacks
from bilevel_rl.levels.coupled_adam import CoupledAdam
from bilevel_rl.levels.engine import CRITICS, POLICIES, REWARD, Engine
from bilevel_rl.levels.estimators import Ratios
from bilevel_rl.levels.followers import Drawn, Facing, Lower, Prepared, Scored, distinct
from bilevel_rl.levels.kl_controller import KlController
from bilevel_rl.levels.labels import Labels, LabelsPending
from bilevel_rl.levels.leader import Answer, Gold, Gradient, Leader
from bilevel_rl.levels.methods.base import IterationPlan
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.levels.settings import Settings
from bilevel_rl.levels.step_rules import StepRule
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.records import locked, make_folder
from bilevel_rl.schedules import Sequences

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Where a run is kept, and how often.

    Attributes:
        out: folder; "": nothing is written.
        save_every, samples_every: iterations between checkpoints and sample tables; 0: at the end only, never.
        resume: what happens to a folder that holds a run: "auto" goes on with it where it is this one, "never" refuses it,
            "replace" writes it anew.
        method, seed, steps: of the run's header.
        values: the configuration as JSON values.
    """

    out: str = ""
    save_every: int = 0
    samples_every: int = 0
    resume: str = "never"
    method: str = ""
    seed: int = 0
    steps: int = 0
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        """The configuration."""
        return dict(self.values)


class Loop:
    """Two levels of learning of an engine's policies.

    Args:
        engine: the policies, the rewards and their weights.
        settings: constants, budgets, schedules.
        objective: f; None with method=plain.
        labels: whom the leader asks.
        recipe: how a follower learns.
        fields: fields of a `Batch` that the engine provides, for the recipe's check.
        starts: number of different groups.
        processes: this process and its peers; None: it is alone, on the CPU.
        share: this process's rows; None: all.
        config: of the run folder (see `Keeping`); None: nothing is written.
        callbacks: transformers' callbacks.
        model, tokenizer: what callbacks receive.
        problem: label of the task in the run folder.
        digests: fingerprints of what the run begins with.

    Attributes:
        step: iterations done.
        history: one dict of metrics an iteration.

    Example:
        see docs/adding/levels.md: an engine of one's own.

    References:
        arXiv 2601.16399, algorithm 1; the shared and tilted estimators are ours (docs/llm/trainer.md).
    """

    def __init__(
        self, engine: Engine, settings: Settings, objective: Any, labels: Labels, recipe: Recipe, *,
        fields: Collection[str] = (), starts: int = 1, processes: Processes | None = None, share: Share | None = None,
        config: Any = None, callbacks: Sequence[Any] = (), model: Any = None, tokenizer: Any = None,
        problem: str = "own", digests: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.settings, self.recipe = engine, settings, recipe
        self.method = methods.method_of(settings)
        self.method.check(objective)
        requirements.check(recipe, self.method, fields, engine)
        self.processes = processes or Processes("cpu")
        self.share = share or Share(0, settings.batch, settings.micro_batch)
        if self.processes.sharded and requirements.chooses(recipe):
            raise InvalidConfig(
                message("recipe", "select or demonstrations, with weights in pieces",
                        "every process must evaluate equally many rows", "Leave sharding or the selection out")
            )  # fmt: skip
        if recipe.step is not None and any(engine.pieces.divided(p) for p in engine.parameters(POLICIES[0]).values()):
            raise InvalidConfig(
                message("recipe", f"step={recipe.step.card.name} with weights in pieces",
                        "its rule looks at a policy's whole gradient, of which each process has a piece",
                        "Leave step out, or set backend=lora")
            )  # fmt: skip
        self.critics = "value" in requirements.needs(recipe)
        # one pass with a graph does all, unless rows come in parts, the batch is used again, the rows that are learned
        # from are known after scoring only, or the engine can't keep the graph
        in_parts = 0 < settings.micro_batch < self.share.own
        self.one_pass = (
            settings.one_pass and settings.epochs == 1 and not in_parts and not requirements.chooses(recipe)
        )
        names = engine.names
        # one optimiser for both followers: see `coupled_adam`
        self.optimizers = {
            kind: self._optimizer([name for name in among if name in names])
            for kind, among in (("policies", POLICIES), ("critics", CRITICS), ("reward", (REWARD,)))
            if among[0] in names and engine.parameters(among[0])
        }
        self.lower = Lower(settings, engine, self.processes, self.share)
        self.learner = learner.Learner(recipe, settings, self.lower, starts, fields)
        self.leader = Leader(
            settings, engine, self.processes, self.share, objective, labels, self.method.keeps
        )
        self.config: Any = config or Keeping(method=settings.method, seed=settings.seed, steps=settings.steps)
        self.problem, self.digests = problem, dict(digests or {})
        self.controller = KlController(settings.target_kl, settings.kl_rate)
        self.updates = 0  # of theta, since this process began
        self._early: tuple[int, list[Drawn], int] | None = None  # rows of the next iteration, and how many actions
        self.enough = ""  # why the run may end before its last iteration
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.last: tuple[Scored, Tensor | None] | None = None
        self.warnings = measures.Warnings()
        self.folder = run_folder.RunFolder(self.config, problem, self.processes.main)
        self.callbacks = Callbacks(
            callbacks, self.config, model, tokenizer, self.optimizers["policies"], self.processes.main
        )

    @property
    def objective(self) -> Any:
        """f."""
        return self.leader.objective

    @objective.setter
    def objective(self, objective: Any) -> None:
        self.leader.objective = objective

    @property
    def tokens(self) -> int:
        """Actions drawn so far."""
        return self.engine.samples

    @property
    def labels(self) -> int:
        """Labels asked for so far."""
        return self.leader.count

    @property
    def replay(self) -> list[Any]:
        """Pairs labelled so far, where they are used again."""
        return self.leader.replay

    def _optimizer(self, roles: Sequence[str]) -> torch.optim.Optimizer:
        groups = [list(self.engine.parameters(role).values()) for role in roles]
        if self.recipe.step is not None and roles[0] in POLICIES:
            return StepRule(self.recipe.step, groups)
        if self.settings.optimizer == "sgd" or (self.settings.optimizer == "sgd_x" and roles[0] == REWARD):
            return torch.optim.SGD([{"params": group} for group in groups], lr=1.0)
        return CoupledAdam(groups)

    # -- the loop ---------------------------------------------------------------------------------------------

    def train(self) -> list[dict[str, float]]:
        """Run to `settings.steps`.

        Returns:
            The history: one dict of metrics an iteration. Checkpoints, lines, sample tables and callbacks happen
            on the way. A judge whose labels are pending stops the run, to be resumed.

        Raises:
            NonFiniteState: NaN or infinity, naming the quantity and the iteration; the last checkpoint stays.
            JudgeFailed: the judge failed three times in a row; the last checkpoint stays.
            StorageFailed: the run folder can't be written, or another process writes it.
            Stopped: a signal asked for it; the iteration that was under way is done and saved.
        """
        with contextlib.ExitStack() as stack:
            if self.config.out and self.processes.main:
                stack.enter_context(locked(make_folder(self.config.out)))
            return self._train()

    def _train(self) -> list[dict[str, float]]:
        self.processes.agree({}, self.folder.refusal(self.step))
        self.folder.begin(self.step, self.digests)
        self.callbacks.event("train_begin", self.step)
        try:
            with signals.Deferred() as signal:
                while self.step < self.settings.steps and not self.callbacks.stop and not self.enough:
                    self._one()
                    if self.processes.largest(signal.asked):  # a signal to one process stops all, at one iteration
                        self.save()
                        signal.check()
                        raise signals.Stopped()
        except LabelsPending as pending:
            self.save()
            self.folder.status("stopped", str(pending), self.step)
            return self.history
        except BaseException as error:
            state = "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
            self.folder.status(state, str(error), self.step)
            raise
        self.save()
        finished = self.step >= self.settings.steps or bool(self.enough)
        self.folder.status("finished" if finished else "stopped", self.enough, self.step)
        self.callbacks.event("train_end", self.step)
        return self.history

    def _one(self) -> None:
        """One iteration with what is kept of it; where labels are pending, nothing has happened."""
        self.callbacks.event("step_begin", self.step)
        samples, labels, pairs = self.engine.samples, self.leader.count, len(self.leader.replay)
        updates = self.updates
        states = checkpoint.random_states()
        try:
            with self._ahead():
                line = self.iterate(self.step)
        except LabelsPending:  # no weight of this iteration has moved yet
            self.engine.samples, self.leader.count = samples, labels
            del self.leader.replay[pairs:]
            checkpoint.set_random_states(states)
            raise
        self.step += 1
        if "kl" in line and self.updates > updates:  # a policy that stands still says nothing about tau
            self.controller.see(line["kl"])
        self.engine.moved()
        self._record(line)
        self.after()
        due = self.config.save_every and self.step % self.config.save_every == 0
        if due or self.callbacks.save:
            self.save()

    def after(self) -> None:
        """What an engine's own loop does after an iteration; it may set `enough`."""

    def _ahead(self) -> contextlib.AbstractContextManager[None]:
        """Some step rules sample at an extrapolated point, and step from the last one."""
        policies = self.optimizers["policies"]
        return policies.ahead() if isinstance(policies, StepRule) else contextlib.nullcontext()

    def iterate(self, k: int) -> dict[str, float]:
        """One iteration of the method; returns its metrics."""
        began, at, method = time.perf_counter(), self.at(k), self.method
        plan = method.plan(self.leader, k)
        if not plan.draws:
            return self._fit_only(k, at, plan.zeta, began)
        followers = self.score(self.drawn(k), at.tau, plan.moves and self.one_pass, k)
        if self.overlaps(plan):
            return self._meanwhile(k, at, plan, followers, began)
        ratios = method.ratios(followers)
        gold, answer, hyper = self.upper(followers, ratios, plan, at, k)
        norms: dict[str, float] = {}
        if plan.moves:
            incentive = method.incentive(answer, at)
            ready = self.learner.prepare(followers, incentive, ratios, self.facing(k), k)
            norms = self.learn(ready, at, k)
            self.couple()
        if hyper is not None:
            norms |= self.descend(hyper, plan.zeta, k)
        return self._line(k, at, followers, ratios, gold, answer, norms, began)

    def overlaps(self, plan: IterationPlan) -> bool:
        """Whether the judge is asked while the policy learns and writes: where it is asked once, of one x."""
        return (
            self.leader.labels.overlaps and plan.asks and plan.moves and self.method.one_x
            and self.leader.objective.needs_pairs
        )  # fmt: skip

    def _meanwhile(
        self, k: int, at: Sequences, plan: IterationPlan, followers: Sequence[Scored], began: float
    ) -> dict[str, float]:
        """The rest of an iteration, in an order in which the judge is waited for last; the numbers are the same.

        theta's gradient needs no label, and where theta is alone its step and its next rows need none. Beside theta^L it
        steps with it, by one denominator and one bound; a method that goes back to theta finds it where the rows were drawn.
        """
        method, facing = self.method, self.facing(k)
        self.leader.begin(followers[-1], k)
        ratios = method.ratios(followers)
        theta = self.learner.lead(followers[0], facing, k)
        alone = len(followers) == 1 and not method.looks_at_theta
        norms: dict[str, float] = {}
        if alone:
            norms = self.learn([theta], at, k)
            self._write_ahead(k + 1)
        begun = not alone and self.begin(theta, at, k)
        gold, answer, hyper = self.upper(followers, ratios, plan, at, k)
        if not alone:
            incentive = method.incentive(answer, at)
            others = [self.learner.follow(f, theta, incentive, ratios, facing, k) for f in followers[1:]]
            norms = self.learn([theta, *others], at, k, begun)
            self.couple()
        if hyper is not None:
            norms |= self.descend(hyper, plan.zeta, k)
        return self._line(k, at, followers, ratios, gold, answer, norms, began)

    def _write_ahead(self, k: int) -> None:
        """The rows of an iteration before it begins: they depend on theta, the seed and k alone."""
        plain = self.engine.planner is None and not isinstance(self.optimizers["policies"], StepRule)
        if plain and k < self.settings.steps:
            before = self.engine.samples
            rows = self.sample(k)
            self._early = (k, rows, self.engine.samples - before)
            self.engine.samples = before  # they count when they are used: a checkpoint in between does not have them

    def drawn(self, k: int) -> list[Drawn]:
        """Rows written ahead for iteration k, or written now."""
        early, self._early = self._early, None
        if early is None or early[0] != k:
            return self.sample(k)
        self.engine.samples += early[2]
        return early[1]

    def at(self, k: int) -> Sequences:
        """The five sequences in iteration k, tau as the KL asks for."""
        at = self.settings.schedules.at(k)
        return at._replace(tau=at.tau * self.controller.factor) if self.controller.target else at

    # -- phases -----------------------------------------------------------------------------------------------

    def sample(self, k: int) -> list[Drawn]:
        """y ~ pi_theta, and y_ ~ pi_theta^L unless theta's rows serve both."""
        with guards.during("what the policies write", k):
            found = self.method.sample(self.engine, k)
        return [
            Drawn(role, critic if self.critics else "", rows, self.share.part(rows, self.share.rows))
            for role, critic, rows in found
        ]

    def facing(self, k: int) -> Facing:
        """At which x each role is rewarded in iteration k."""
        return lambda role: self.method.facing(self.leader, role, k)

    def score(self, drawn: Sequence[Drawn], tau: float, graph: bool, k: int) -> list[Scored]:
        """Rewards, log-probabilities, exact KL, entropy and values of each follower on its rows."""
        return self.lower.score(drawn, tau, graph, self.facing(k), k)

    def ask(
        self, followers: Sequence[Scored], ratios: Ratios | None, gold: Gold, plan: IterationPlan, k: int
    ) -> Answer | None:
        """f and its gradients, with fresh labels while the budget lasts."""
        return self.method.ask(self.leader, followers, ratios, gold, plan, k)

    def upper(
        self, followers: Sequence[Scored], ratios: Ratios | None, plan: IterationPlan, at: Sequences, k: int
    ) -> tuple[Gold, Answer | None, Gradient | None]:
        """What the leader sees of the followers: gold scores, f with its gradients, and how x moves."""
        gold = self.leader.gold_scores(followers)
        answer = self.ask(followers, ratios, gold, plan, k)
        if not plan.zeta or answer is None:
            return gold, answer, None
        return gold, answer, self.method.hyper_gradient(self.leader, followers, ratios, answer, at, k)

    def begin(self, theta: Prepared, at: Sequences, k: int) -> bool:
        """theta's first gradient before theta^L's can be had; False where halves of the batch come in turn."""
        rule = self.optimizers["policies"]
        if isinstance(rule, StepRule) and rule.halves:
            return False
        self._clear()
        self.learner.backward(theta, at.tau, self.one_pass, True, k)
        return True

    def _clear(self) -> None:
        for kind in ("policies", "critics"):
            if kind in self.optimizers:
                self.optimizers[kind].zero_grad(set_to_none=True)

    def learn(self, ready: Sequence[Prepared], at: Sequences, k: int, begun: bool = False) -> dict[str, float]:
        """Critics regress on their targets, theta ascends J, theta^L ascends J - w f; returns gradient norms.

        With `begun`, theta's first gradient is there already.
        """
        norms: dict[str, float] = {}
        policies = [f.scored.role for f in ready]
        critics = [f.scored.critic for f in ready if f.scored.critic]
        rule = self.optimizers["policies"]
        halves: tuple[int | None, ...] = (0, 1) if isinstance(rule, StepRule) and rule.halves else (None,)
        for epoch in range(self.settings.epochs):
            there = begun and epoch == 0
            if not there:
                self._clear()
            for half in halves:
                for f in ready[1:] if there else ready:
                    self.learner.backward(f, at.tau, self.one_pass, epoch == 0, k, half)
                if half == 0 and isinstance(rule, StepRule):
                    rule.keep_half(self.processes.add)
            norms |= self.apply("policies", policies, at.alpha, k)
            if critics:
                norms |= self.apply("critics", critics, at.beta, k)
        self.learner.finish(ready[0])
        self.updates += 1
        return norms

    @torch.no_grad()
    def couple(self) -> None:
        """theta^L <- theta^L + kappa (theta - theta^L), kappa = `settings.coupling`.

        The hyper-gradient divides theta^L - theta by w. What one iteration's labels leave in theta^L would stay until
        the KL has pulled it out, about 1/(alpha tau) iterations later, and add up; the pull forgets it in 1/kappa.
        kappa = 0 is the paper's algorithm, kappa = 1 one look-ahead step.
        """
        if not self.settings.coupling or self.method.networks < 2:
            return
        theta, theta_l = (self.engine.parameters(role).values() for role in POLICIES)
        state = self.optimizers["policies"].state
        for p_l, p in zip(theta_l, theta, strict=True):
            p_l.lerp_(p, self.settings.coupling)
            if "master" in state.get(p_l, {}):
                state[p_l]["master"].lerp_(state[p]["master"], self.settings.coupling)

    def apply(self, kind: str, roles: Sequence[str], step: float, k: int) -> dict[str, float]:
        """Sum gradients over processes, bound their norm, and take the optimiser's step; returns the norms.

        Both followers are scaled by one factor, that of the larger gradient.
        """
        norms = {}
        for role in roles:
            parameters, pieces = list(self.engine.parameters(role).values()), self.engine.pieces
            pieces.deliver(parameters)
            grads = []
            for p in parameters:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                grads.append(p.grad)
            pieces.add(self.processes, parameters, grads)
            norms[role] = pieces.norm(self.processes, parameters, grads)
            guards.check_finite(f"gradient of {role}", torch.tensor(norms[role]), k)
        bound, largest = self.settings.clip_norm, max(norms.values())
        optimizer = self.optimizers[kind]
        for group in optimizer.param_groups:
            group["lr"] = step
            if bound and largest > bound:
                torch._foreach_mul_([p.grad for p in group["params"]], bound / largest)
        optimizer.step()
        return norms

    def descend(self, hyper: Gradient, zeta: float, k: int) -> dict[str, float]:
        """x <- x - zeta D; returns norms."""
        parts, total = {"hyper_upper": hyper.direct, "hyper_penalty": hyper.penalty}, hyper.total
        norms = {name: self._norm_of_x(part) for name, part in parts.items()}
        norm = self._norm_of_x(total)
        guards.check_finite("hyper-gradient", torch.tensor(norm), k)
        bound = self.settings.x_clip_norm
        for p, g in zip(self.leader.parameters, total, strict=True):
            p.grad = g * (bound / norm) if bound and norm > bound else g
        optimizer = self.optimizers["reward"]
        optimizer.param_groups[0]["lr"] = zeta
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norms | {"hyper": norm}

    def _norm_of_x(self, values: Sequence[Tensor]) -> float:
        return self.engine.pieces.norm(self.processes, self.leader.parameters, values)

    def _fit_only(self, k: int, at: Sequences, zeta: float, began: float) -> dict[str, float]:
        """x is fitted on the pairs there are, without rows."""
        upper, hyper = self.leader.stored_alone(k)
        norms = self.descend(hyper, zeta, k) if hyper is not None else {}
        line = self._head(k, at)
        return line | self._tail(upper.value, norms, began)

    # -- what is measured and kept ----------------------------------------------------------------------------

    def _line(
        self, k: int, at: Sequences, followers: Sequence[Scored], ratios: Ratios | None, gold: Gold,
        answer: Answer | None, norms: Mapping[str, float], began: float,
    ) -> dict[str, float]:  # fmt: skip
        """One line of `metrics.jsonl`; what is unknown is left out."""
        theta, theta_l = followers[0], followers[-1]
        seconds = time.perf_counter() - began
        made = sum(int(f.rows.lengths.sum()) for f in distinct(followers))
        gap = len(followers) > 1 and self.method.one_x
        self.last = theta, gold.get(POLICIES[0])
        line = self._head(k, at)
        line |= measures.of_followers(theta, theta_l, made, ratios, gold.get(POLICIES[0]), gap, seconds)
        if not self.engine.referred:
            del line["kl"]
        if self.engine.foreign:
            line |= measures.of_sampler(theta, self.settings.off_policy_clip)
        if answer is not None and answer.sample.cost is not None:
            line["cost"] = float(answer.sample.cost.mean())
            line["multiplier"] = self.leader.objective.price
        return line | self._tail(None if answer is None else answer.upper.value, norms, began)

    def _head(self, k: int, at: Sequences) -> dict[str, float]:
        return {
            "iteration": k + 1, "samples": self.engine.samples, "labels": self.leader.count,
            "zeta": at.zeta, "alpha": at.alpha, "beta": at.beta, "w": at.w, "tau": at.tau,
        }  # fmt: skip

    def _tail(self, value: float | None, norms: Mapping[str, float], began: float) -> dict[str, float]:
        line: dict[str, float] = {}
        if value is not None and math.isfinite(value):
            lam = self.settings.x_penalty
            x = self.leader.parameters
            squared = self.leader.pieces.squared(self.processes, x, [p.detach() for p in x]) if lam else 0.0
            line["upper"] = value + lam * squared
        line |= {measures.NAMES.get(key, key): value for key, value in norms.items()}
        line["memory"] = measures.memory(self.processes.device)
        line["seconds"] = time.perf_counter() - began
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
        """The sample table of the last iteration; an engine's own loop knows what to show."""
        return []

    def known_config(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """A checkpoint's configuration as this version writes it."""
        return values

    def save(self, folder: str | Path | None = None) -> None:
        """Write a checkpoint now, to `config.out/checkpoint` unless a folder is given."""
        folder = folder or (Path(self.config.out) / "checkpoint" if self.config.out else None)
        if folder is not None:
            run_folder.save(self, folder)
        self.processes.barrier()
        self.callbacks.event("save", self.step)

    def begin_or_resume(self) -> None:
        """Go on from what the folder holds where `config.resume` is "auto" and there is anything.

        Raises:
            InvalidConfig: it holds another run.
        """
        if self.config.out and self.config.resume == "auto" and run_folder.has_checkpoint(self.config.out):
            self.resume()

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
