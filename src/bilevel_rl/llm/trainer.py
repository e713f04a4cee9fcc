"""The bi-level trainer: a language model, a reward model that answers for it, and a frozen reference.

The iteration is `levels.loop.Loop.iterate`; this module turns what a user hands over into an engine, labels and a recipe.
It knows no task, draws no figure, loads no data; those are callers' business.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from bilevel_rl import names
from bilevel_rl.levels import digests, requirements
from bilevel_rl.levels.engine import REWARD
from bilevel_rl.levels.followers import Scored
from bilevel_rl.levels.leader import check_sources
from bilevel_rl.levels.loop import Loop
from bilevel_rl.levels.objectives import Constrained, make_objective
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.levels.run_folder import FREE, has_checkpoint
from bilevel_rl.levels.settings import Settings
from bilevel_rl.llm import loggers, setup
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.prompts import as_prompts
from bilevel_rl.llm.data.templates import with_text_options
from bilevel_rl.llm.engine import LanguageEngine
from bilevel_rl.llm.fields import fields_by_name
from bilevel_rl.llm.held_out import HeldOut
from bilevel_rl.llm.labels import TextLabels
from bilevel_rl.llm.memory import estimate_memory
from bilevel_rl.llm.rewards.functions import progress
from bilevel_rl.llm.roles import sharding
from bilevel_rl.llm.sampling.rollout import Rollout
from bilevel_rl.llm.sampling.sampler import Generator, Sampler, inverse_cdf, race
from bilevel_rl.llm.vllm import made_generator
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.recipes import compose
from bilevel_rl.policy_gradient.setting import Setting

log = logging.getLogger(__name__)
OBJECT = "(an object)"
SAMPLES = 8  # completions in a sample table
DEFAULT = "token_rloo"  # the recipe of a configuration that names none


class BilevelTrainer(Loop):
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
        cost: second judge as a constraint (`config.cost_bound`): a scorer of costs with the same signature.
        preferences: stored preferences: rows with `prompt`, `chosen`, `rejected`.
        held_out: prompts that no step sees, for `config.eval_every`; `held_out_gold` their scorer, by default `gold`.
        objective: a user's own upper objective; None: `config.objective`.
        reference: the frozen reference; None: a copy of the policy as it is now.
        generator: samples completions; None: our own sampler.
        recipe: how a follower learns: a `Recipe`, a name or a composition (`policy_gradient.compose`); None:
            `config.recipe`. Both followers get theta's selection and weights.
        fields: what the task knows of each response and components read, by field of `Batch`: functions of a
            `Rollout` that return [N] or [N, T] tensors (turn, state_key, duration, ...); beside those of `config.fields`.
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
        cost: Callable[..., Sequence[float]] | None = None,
        preferences: Iterable[Any] | None = None,
        held_out: Sequence[Any] = (),
        held_out_gold: Callable[..., Sequence[float]] | None = None,
        objective: Any = None,
        reference: Any = None,
        generator: Generator | None = None,
        recipe: Recipe | str | None = None,
        fields: Mapping[str, Callable[[Rollout], Tensor]] | None = None,
        callbacks: Sequence[Any] = (),
        resume: bool = False,
        problem: str = "language_model",
    ) -> None:
        config, recipe = with_recipe(config, recipe)
        if cost is not None and not config.cost:  # said in the run folder: x has one number more
            config = dataclasses.replace(config, cost=OBJECT)
        self.processes = Processes(config.device, sharding.asked())
        begun: dict[str, str] = {}
        failure: Exception | None = None
        made: _Made | None = None
        try:  # nothing in here waits for another process, so that all hear of a failure
            made = _make(
                config, self.processes, policy, reward, prompts, tokenizer, judge, gold, preferences, objective, reference,
                recipe, fields or {}, cost,
            )  # fmt: skip
            begun = _digests(config, made)
        except Exception as error:
            failure = error
        self.processes.agree(begun, failure)
        assert made is not None
        if self.processes.sharded:
            sharding.shard(made.roles)
        self.roles, self.prompts, self.tokenizer = made.roles, made.prompts, made.tokenizer
        self.judge, self.gold, self.stop_ids, self.pad_id = judge, gold, made.stop_ids, made.pad_id
        self.schedules = config.schedules
        self.held_out = HeldOut(config, held_out, held_out_gold or gold)
        self.updates = 0  # what a server's weights are known by
        generator = self._generator(config, generator, made)
        engine = LanguageEngine(
            config, made.roles, self.processes, made.share, made.prompts, generator, made.tokenizer, made.stop_ids,
            made.pad_id, made.fields,
        )  # fmt: skip
        labels = TextLabels(
            judge, gold, made.stored, made.prompts, made.pad_id, made.tokenizer, self.processes.device, cost
        )
        super().__init__(
            engine, made.settings, made.objective, labels, made.recipe, fields=engine.provides,
            starts=len(made.prompts), processes=self.processes, share=made.share, config=config,
            callbacks=[*callbacks, *loggers.named(config.loggers)],
            model=made.policy, tokenizer=made.tokenizer, problem=problem, digests=begun,
        )  # fmt: skip
        rows = config.micro_batch or made.share.own
        self.memory = estimate_memory(config, made.roles, rows, setup.vocabulary(made.policy))
        progress(self.roles.reward, self)
        if resume or (config.resume == "auto" and has_checkpoint(config.out)):
            self.resume()
        elif self.processes.main:
            if self.method.asks:
                self.leader.foretell()
            log.info("memory %s", self.memory)
            for sentence in self.schedules.broken_constraints():
                log.info("schedules outside the paper's conditions: %s", sentence)

    def _generator(self, config: Config, generator: Generator | None, made: _Made) -> Generator:
        """Who writes: the one given, the one that the configuration names, or our own sampler."""
        sampler = Sampler(
            made.stop_ids, made.pad_id, config.temperature, made.tokenizer, config.dtype, self.processes.together,
            made.roles.unheld, race if config.common == "race" else inverse_cdf,
        )  # fmt: skip
        if generator is None and names.is_name(config.generator):
            generator = names.find(config.generator, {}, "config.generator")(made.tokenizer)
        if generator is None:
            generator = made_generator(config, self, sampler) if config.generator else sampler
        if hasattr(generator, "together"):
            generator.together = self.processes.together
        return generator

    @property
    def generator(self) -> Any:
        """What samples completions."""
        return self.engine.generator  # type: ignore[attr-defined]

    @generator.setter
    def generator(self, generator: Any) -> None:
        self.engine.generator = generator  # type: ignore[attr-defined]

    def after(self) -> None:
        """See `Loop`: held-out evaluation."""
        if self.held_out.due(self.step):
            figures = self.held_out.look(self)
            self.callbacks.log(self.step, figures)

    def resume(self, folder: str | Path | None = None) -> None:
        """See `Loop`."""
        super().resume(folder)
        if folder is None:
            self.held_out.resume(self.step, self.processes.main)

    def train(self) -> list[dict[str, float]]:
        """See `Loop`."""
        if self.step == 0 and not self.folder.refusal(0):
            self.held_out.begin()
        return super().train()

    def table(self) -> list[dict[str, Any]]:
        """The sample table: prompt, completion, learned reward and gold score of the last iteration's first rows."""
        return sample_table(*self.last) if self.last is not None else []

    def known_config(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Loop`: keys of before are read as what they mean now."""
        return Config.from_dict(values, "checkpoint").asdict()

    # -- results ----------------------------------------------------------------------------------------------

    def export_policy(self, folder: str | Path) -> None:
        """Write theta as a transformers model (full) or a PEFT adapter (lora), with the tokenizer.

        Every process calls it, the main one writes.
        """
        from bilevel_rl.llm.roles.weights import export_policy

        export_policy(self.roles, folder, self.tokenizer, write=self.processes.main)

    def export_reward(self, folder: str | Path) -> None:
        """Write x as an `AutoModelForSequenceClassification`, with the tokenizer; called as `export_policy` is.

        Raises:
            InvalidConfig: a reward model that is not a classifier.
        """
        from bilevel_rl.llm.roles.weights import export_reward

        export_reward(self.roles, folder, self.tokenizer, write=self.processes.main)

@dataclasses.dataclass(frozen=True)
class _Made:
    """What a user hands over, checked and made."""

    tokenizer: Any
    policy: Any
    prompts: Sequence[Any]
    stop_ids: Sequence[int]
    pad_id: int
    objective: Any
    stored: Sequence[setup.Pair]
    settings: Settings
    recipe: Recipe
    share: Share
    roles: Any
    fields: Mapping[str, Callable[[Rollout], Tensor]]


def _make(
    config: Config, processes: Processes, policy: Any, reward: Any, prompts: Iterable[Any], tokenizer: Any, judge: Any,
    gold: Any, preferences: Any, objective: Any, reference: Any, recipe: Recipe, fields: Mapping[str, Any],
    cost: Any = None,
) -> _Made:  # fmt: skip
    """Check what was given and make the roles."""
    settings, method = config.settings, config.algorithm
    objective = objective if objective is not None else make_objective(config.objective, config.tail)
    if cost is not None and method.asks:
        objective = Constrained(objective, config.cost_bound)
    method.check(objective)
    tokenizer = with_text_options(setup.load_tokenizer(config, policy, tokenizer), config.texts)
    policy = setup.load_policy(config, policy)
    vocabulary = setup.vocabulary(policy)
    setup.check_vocabulary(policy, tokenizer)
    known = as_prompts(
        prompts, tokenizer, config.max_prompt_tokens, vocabulary, long_prompts=config.long_prompts
    )
    setup.check_context(config, policy, known)
    fields = {**fields_by_name(config.fields, known), **fields}
    stop_ids = setup.stop_ids(config, policy, tokenizer)
    pad = getattr(tokenizer, "pad_token_id", None)
    pad_id = pad if pad is not None else stop_ids[0] if stop_ids else 0
    stored = setup.as_pairs(preferences, tokenizer, config, vocabulary, stop_ids)
    if method.asks:
        check_sources(objective, judge is not None, gold is not None, bool(stored), cost is not None)
    truncates: Any = None if stop_ids else True  # unknown before the run, where there are stop ids
    setting = Setting(
        epochs=config.epochs, group=config.group, max_new_tokens=config.max_new_tokens,
        turns="turn" in fields, truncates=truncates,
    )  # fmt: skip
    recipe = recipe.configured(setting)
    if recipe.name != DEFAULT:
        for sentence in recipe.idle(setting):
            log.warning("%s", sentence)
    mine = processes.share(config.prompts_per_step)
    share = Share(mine.start * config.group, mine.stop * config.group, config.micro_batch)
    read = requirements.needs(recipe)
    # plain learning that nothing holds near the reference needs none, in memory or in a pass
    read_of_it = bool({"ref", "kl", "start_features"} & read)
    referred = method.asks or config.tau != 0 or reference is not None or read_of_it
    roles = setup.make_roles(
        config, policy, reward, reference, processes.device, "value" in read, tokenizer, known, referred
    )
    if callable(getattr(objective, "parameters", None)):  # a multiplier trains with x
        roles.join(REWARD, objective.parameters())
    return _Made(
        tokenizer, policy, known, stop_ids, pad_id, objective, stored, settings, recipe, share, roles, fields
    )


def with_recipe(config: Config, recipe: Recipe | str | None) -> tuple[Config, Recipe]:
    """The recipe of a run, and the configuration that says it, so that a resumed run is the same algorithm.

    Args:
        config: as given; its own recipe counts when there is no other.
        recipe: an object, a name or a composition.

    Returns:
        the configuration with the recipe's text, and the recipe.

    Raises:
        InvalidConfig: the run has a folder and the recipe can't be written to it.
    """
    if recipe is None or recipe == "":
        return config, compose(config.recipe or DEFAULT)
    if isinstance(recipe, str):
        return dataclasses.replace(config, recipe=recipe), compose(recipe)
    if not config.out:
        return config, recipe
    return dataclasses.replace(config, recipe=recipe.describe()["composition"]), recipe


def _digests(config: Config, made: _Made) -> dict[str, str]:
    """Fingerprints of what the run begins with: the same on every process, and when it is continued."""
    data = [[p.ids, p.text, dict(p.columns)] for p in made.prompts], [[p.ids, a, b] for p, a, b in made.stored]
    return {
        "configuration": digests.of_values({k: v for k, v in config.asdict().items() if k not in FREE}),
        "length": digests.of_values(config.steps), "data": digests.of_values(data),
        "initial weights": digests.of_tensors(made.roles.state()),
        "frozen weights": digests.of_tensors(made.roles.stood_on()),
    }  # fmt: skip


def sample_table(theta: Scored, gold: Tensor | None, count: int = SAMPLES) -> list[dict[str, Any]]:
    """Prompt, completion, learned reward and gold score of the first rows."""
    return [
        {
            "prompt": theta.rows.prompts[i].text, "completion": theta.rows.texts[i],
            "reward": float(theta.reward[i]), "gold": None if gold is None else float(gold[i]),
        }
        for i in range(min(count, theta.rows.size))
    ]  # fmt: skip
