"""The one configuration of a language-model run: every key, its meaning, its default, its check."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bilevel_rl import names
from bilevel_rl.errors import InvalidConfig, did_you_mean, message, require
from bilevel_rl.llm.sections import SECTIONS, flattened, top_level, warn_of_flat
from bilevel_rl.schedules import SHAPES, Annealed, PowerDecay, TimeScales

if TYPE_CHECKING:
    from bilevel_rl.levels.methods import Method
    from bilevel_rl.levels.settings import Settings

RATIOS = ("sequence", "token")
COMMON = ("race", "inverse", "none")
REGULARIZERS = ("kl", "entropy")
KL_ESTIMATORS = ("exact", "k1", "k3")
BACKENDS = ("full", "lora")
DTYPES = ("float32", "bfloat16", "float64")
OPTIMIZERS = ("adam", "sgd", "sgd_x")
LONG = ("refuse", "drop", "cut")
RESUMES = ("never", "auto", "replace")
REWARDS = ("classifier", "linear")
CURVATURES = ("fisher", "hessian")
LOGGERS = ("tensorboard", "wandb", "trackio")
WATCHED = ("gold", "reward")
ATTENTIONS = ("", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
QUANTISED = ("", "4bit", "8bit")
WEIGHTS = ("float32", "bfloat16")

# Keys of other trainers that would break an estimator here, with the reason that the error gives.
REFUSED = {
    "top_p": "training gradients are those of the true sampling law, and top-p changes it",
    "top_k": "training gradients are those of the true sampling law, and top-k changes it",
    "trust_remote_code": "code from a model's repository is never run",
    "dropout": "dropout is 0 in every role: a rollout and its gradient must come from the same law",
}


class Rule(NamedTuple):
    """What a number must be."""

    holds: Callable[[Any], bool]
    text: str


def _whole(low: int) -> Rule:
    return Rule(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= low,
        f"it must be a whole number of at least {low}",
    )


SOME, ANY = _whole(1), _whole(0)
ABOVE = Rule(lambda v: math.isfinite(v) and v > 0, "it must be a finite number above 0")
FROM = Rule(lambda v: math.isfinite(v) and v >= 0, "it must be a finite number of at least 0")
SHARE = Rule(lambda v: math.isfinite(v) and 0 <= v <= 1, "it must lie in [0, 1]")


def _key(default: Any, meaning: str, choices: Iterable[Any] | None = None, rule: Rule | None = None) -> Any:
    metadata = {"meaning": meaning, "choices": None if choices is None else tuple(choices), "rule": rule}
    if isinstance(default, (dict, list)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run needs besides the objects handed to `BilevelTrainer`.

    `Config.keys()` gives each key with its meaning; `bilevel-rl llm train --help` prints them as a file has them, in
    sections (`llm.sections`). A run's batch has
    `prompts_per_step * group` completions for each policy that is sampled.

    Raises:
        InvalidConfig: a value that is not allowed, on construction.

    Example:
        >>> Config(steps=10, w=0.1).schedules.at(0).w
        0.1
    """

    # -- the run
    method: str = _key("bilevel", "algorithm: bilevel; partial_sgd, fixed_reward, nested or finite_difference; or plain RL")
    seed: int = _key(0, "the one integer from which all randomness follows", rule=ANY)
    steps: int = _key(200, "iterations; each is one rollout batch and one step of every sequence", rule=SOME)
    out: str = _key("", "run folder; empty: nothing is written")
    resume: str = _key("never", "a run that is there already: an error (never), continued (auto), or emptied (replace)",
                       RESUMES)  # fmt: skip
    save_every: int = _key(50, "iterations between checkpoints; 0: at the end only", rule=ANY)
    samples_every: int = _key(50, "iterations between sample tables; 0: never", rule=ANY)
    keep_last: int = _key(1, "checkpoints that are kept, the newest ones", rule=SOME)
    keep_best: bool = _key(True, "with held-out prompts: the best checkpoint too, in best/")
    loggers: list[str] = _key([], "where metrics go besides the run folder: tensorboard, wandb, trackio")

    # -- held-out evaluation
    eval_prompts: str = _key("", "prompts that no step sees: hub id, file or folder")
    eval_every: int = _key(0, "iterations between evaluations on them; 0: never", rule=ANY)
    eval_count: int = _key(64, "how many of them, the first ones", rule=SOME)
    eval_gold: str = _key("", "their scorer, named as gold is; empty: the run's own")
    eval_metric: str = _key("gold", "what the best checkpoint and patience look at, more is better", WATCHED)
    patience: int = _key(0, "evaluations without a better one after which the run ends; 0: never", rule=ANY)

    # -- models
    policy: str = _key("", "hub id or folder of the language model, when no model object is given")
    reward: str = _key(
        "classifier", "reward model: classifier, linear, a classifier's hub id or folder, or MODULE:NAME, FILE.py:NAME, ..."
    )
    backend: str = _key(
        "full", "roles as separate weights (full) or adapters on one frozen base (lora)", BACKENDS
    )
    lora_rank: int = _key(8, "rank of each adapter", rule=SOME)
    lora_scale: float = _key(2.0, "LoRA's alpha / rank", rule=ABOVE)
    lora_targets: list[str] = _key([], "module names that get adapters; empty: the architecture's default")
    train: list[str] = _key([], "full: names of the policy's weights that train, or parts of them; empty: all")
    dtype: str = _key("float32", "precision of the forward passes; bfloat16 keeps 32-bit weights", DTYPES)
    weights: str = _key("float32", "of the weights themselves; bfloat16: what trains has 32-bit masters", WEIGHTS)
    quantised: str = _key("", "lora: the base in 4 or 8 bits (4bit, 8bit; extra quantised); empty: as it is", QUANTISED)
    attention: str = _key("", "implementation of attention, by transformers' name; empty: the model's own", ATTENTIONS)
    gradient_checkpointing: bool = _key(False, "recompute activations in the backward pass")
    device: str = _key("auto", "cpu, cuda, or auto: the one accelerate chooses")

    # -- data
    prompts: str = _key("", "prompts: hub id, file or folder, when none are given in Python")
    preferences: str = _key("", "stored preferences: hub id, file or folder, when none are given in Python")
    task: str = _key("", "a shipped small task, NAME or NAME@LEVEL: prompts, reward, fields, world and a start policy")
    fields: dict[str, str] = _key({}, "what the task knows of responses: field=MODULE:NAME, FILE.py:NAME or a column, ...")
    judge: str = _key("", "FOLDER@LABEL of a classifier, builtin:vader, MODULE:NAME, FILE.py:NAME, or queue:FOLDER by hand")
    gold: str = _key("", "gold scorer, by the same names; empty: the judge's own scores")
    cost: str = _key("", "second judge as a constraint: a scorer of costs, by the same names")
    cost_bound: float = _key(0.0, "largest mean cost allowed; its multiplier is a part of x")
    texts: dict[str, Any] = _key(
        {}, "options of the tokenizer: its chat template's (enable_thinking: false), or skip_special_tokens: false"
    )
    max_prompt_tokens: int = _key(64, "longest prompt allowed", rule=SOME)
    long_prompts: str = _key("refuse", "a longer one: refuse, drop, or cut its beginning", LONG)

    # -- rollouts
    prompts_per_step: int = _key(16, "prompts of an iteration, all processes together", rule=SOME)
    group: int = _key(4, "completions of each prompt", rule=SOME)
    max_new_tokens: int = _key(32, "longest completion", rule=SOME)
    temperature: float = _key(
        1.0, "divides the logits of policy and reference alike: part of the policy's law", rule=ABOVE)
    stop_ids: list[int] = _key(
        [], "token ids that end a completion; empty: the tokenizer's and the model's EOS"
    )
    micro_batch: int = _key(0, "rows of a forward pass; gradients accumulate; 0: all rows at once", rule=ANY)

    generator: str = _key("", "who writes: empty: our sampler; vllm:URL, a server of vLLM's protocol; FILE.py:NAME, ...")
    generator_folder: str = _key("", "vllm: folder, seen by both, through which weights go; empty: generator/ in out")
    off_policy_clip: float = _key(2.0, "bound on a token's ratio of the policy to who wrote it (vllm)", rule=ABOVE)

    # -- lower level
    regularizer: str = _key("kl", "tau weighs the KL to the reference, or the entropy bonus", REGULARIZERS)
    kl_estimator: str = _key(
        "exact", "over the vocabulary, or the one-sample estimators k1, k3", KL_ESTIMATORS
    )
    target_kl: float = _key(0.0, "nats a completion that tau is controlled to; 0: tau is as scheduled", rule=FROM)
    kl_rate: float = _key(0.1, "largest lasting change of log tau an iteration, where it is controlled", rule=ABOVE)
    recipe: str = _key("", "how a policy learns: a name, or parts (credit=..., loss=...); empty: token_rloo")
    epochs: int = _key(1, "passes over a batch; more than one uses the clipped surrogate", rule=SOME)

    # -- upper level
    # tuned on happy tweets at tau .2 with a win rate of .05: what counts is their ratio
    objective: dict[str, float] = _key(
        {"label_likelihood": 1.0, "win_rate": 0.0125}, "upper objectives by name and weight"
    )
    tail: float = _key(0.25, "worst_prompts: share of an iteration's prompts that counts", rule=SHARE)
    x_penalty: float = _key(0.0, "lambda of the term lambda |x|^2 of the upper objective", rule=FROM)
    pairs_per_step: int = _key(8, "pairs that the judge labels an iteration (fresh-preference objective)", rule=ANY)
    label_budget: int = _key(0, "judge labels of a run; 0: no limit. Spent: no fresh labels, the run goes on", rule=ANY)
    replay_pairs: int = _key(0, "pairs replayed from those labelled before, in each step of x; 0: fresh only", rule=ANY)
    estimator: str = _key(
        "tilted", "theta's answer in closed form, by its curvature (fisher), or by a second network (shared, paired)"
    )
    fisher_steps: int = _key(6, "fisher: products of conjugate gradients", rule=SOME)
    fisher_damping: float = _key(0.1, "fisher: damping, as a share of the curvature along what is solved for", rule=FROM)
    curvature: str = _key("fisher", "tau F, or the policy's whole curvature (hessian)", CURVATURES)
    common_numbers: str = _key(
        "race", "paired: both followers draw with the same numbers, by a race or inverse laws; or none", COMMON
    )
    ratio: str = _key(
        "sequence", "importance ratio: of whole completions, or a product's first order", RATIOS
    )
    ratio_clip: float = _key(3.0, "bound on |log ratio|", rule=ABOVE)
    coupling: float = _key(0.0, "share of theta^L - theta taken away after each step (theta^L a network)", rule=SHARE)

    # -- steps
    optimizer: str = _key(
        "adam", "rule that turns a gradient into a step; sgd_x: adam for policies and critics, plain steps for x", OPTIMIZERS
    )
    clip_norm: float = _key(1.0, "bound on each policy's and critic's gradient norm; 0: none", rule=FROM)
    x_clip_norm: float = _key(0.0, "bound on the hyper-gradient's norm; 0: none", rule=FROM)
    hold_x: int = _key(0, "first iterations in which x does not move, so that the followers track", rule=ANY)
    inner_steps: int = _key(10, "policy steps for each x step (nested, finite_difference)", rule=SOME)
    reward_steps: int = _key(100, "iterations that fit x before the policy moves (fixed_reward)", rule=SOME)
    difference: float = _key(0.1, "half-width of the central difference in x (finite_difference)", rule=ABOVE)
    schedule: str = _key("power", "how zeta, alpha, beta go on: the paper's power, constant, linear, cosine", SHAPES)
    warmup: int = _key(0, "first iterations in which these steps rise", rule=ANY)
    schedule_end: float = _key(0.0, "share of a step left at the end (linear, cosine)", rule=SHARE)
    zeta: float = _key(1e-3, "zeta_0, step of x")
    zeta_power: float = _key(0.0, "zeta_k = zeta_0 / (k+1)^power")
    alpha: float = _key(1e-3, "alpha_0, step of the policies")
    alpha_power: float = _key(0.0, "alpha_k = alpha_0 / (k+1)^power")
    beta: float = _key(1e-3, "beta_0, step of the critics")
    beta_power: float = _key(0.0, "beta_k = beta_0 / (k+1)^power")
    w: float = _key(0.1, "w_0, penalty constant, reward / objective: smaller is a stronger penalty")
    w_power: float = _key(0.0, "w_k = w_0 / (k+1)^power")
    tau: float = _key(0.05, "tau_0, weight of KL or entropy, in units of reward")
    tau_power: float = _key(0.0, "tau_k = tau_0 / (k+1)^power")

    def __post_init__(self) -> None:
        if isinstance(self.objective, str):
            object.__setattr__(self, "objective", {self.objective: 1.0})
        self.check()

    # -- what the keys say together

    @property
    def schedules(self) -> TimeScales:
        """The five sequences."""
        return TimeScales(*map(self._sequence, ("zeta", "alpha", "beta", "w", "tau")))

    def _sequence(self, name: str) -> PowerDecay:
        initial, power = getattr(self, name), getattr(self, f"{name}_power")
        if name in ("w", "tau") or (self.schedule == "power" and not self.warmup):
            return PowerDecay(initial, power)
        if self.schedule != "power" and power:
            raise InvalidConfig(
                message(f"config.{name}_power", f"{power:g} with schedule={self.schedule}", "a step falls in one way",
                        "Leave the power out, or set schedule to power")
            )  # fmt: skip
        from bilevel_rl.levels import methods

        loops = methods.method_of(methods.Settings(method=self.method, estimator=self.estimator)).loops
        inner = self.inner_steps if name == "zeta" and loops else 1  # x steps once an inner loop
        return Annealed(
            initial, power, steps=-(-self.steps // inner), shape=self.schedule, warmup=self.warmup // inner,
            end=self.schedule_end,
        )  # fmt: skip

    @property
    def batch(self) -> int:
        """Completions of one policy in an iteration, all processes together."""
        return self.prompts_per_step * self.group

    @property
    def common(self) -> str:
        """How the draws of two followers go together: race, inverse or none."""
        return self.common_numbers if self.algorithm.common else "none"

    @property
    def uses_penalised(self) -> bool:
        """Whether the run has a second policy."""
        return self.algorithm.networks == 2

    @property
    def settings(self) -> Settings:
        """What `levels` needs to know of it."""
        from bilevel_rl.levels.settings import Settings

        names = {f.name for f in dataclasses.fields(Settings)} & {f.name for f in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in names}
        # an adapter that is switched between a checkpointed forward pass and its backward pass gives silently wrong
        # gradients
        switched = self.backend == "lora" and self.gradient_checkpointing
        return Settings(**values, batch=self.batch, schedules=self.schedules, one_pass=not switched)

    @property
    def algorithm(self) -> Method:
        """The method that it names, with its constants."""
        from bilevel_rl.levels import methods

        return methods.method_of(self.settings)

    def asdict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def keys(cls) -> dict[str, str]:
        """Every key with its meaning."""
        return {f.name: f.metadata["meaning"] for f in dataclasses.fields(cls)}

    @classmethod
    def top_level(cls) -> list[str]:
        """What stands at the top of a configuration file: keys, and sections of keys."""
        return top_level(cls.keys())

    # -- reading

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> Config:
        """Build from plain values.

        Raises:
            InvalidConfig: an unknown key (with the nearest known one), a wrong type, or a value not allowed.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        values = former_keys(flattened(values, where), where)
        clean = {}
        for name, value in values.items():
            if name in REFUSED:
                raise InvalidConfig(message(f"{where}.{name}", repr(value), REFUSED[name], f"Remove {name}"))
            if name not in known:
                raise InvalidConfig(
                    message(
                        where,
                        f"the unknown key {name!r}",
                        did_you_mean(name, list(dict.fromkeys([*known, *SECTIONS]))),
                        "Correct or remove the key",
                    )
                )
            clean[name] = _coerce(f"{where}.{name}", known[name], value)
        return cls(**clean)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Config:
        """Read a YAML file, then apply `key=value` overrides.

        Raises:
            InvalidConfig: no such file, not a mapping, an unknown key, or a value not allowed.
        """
        yaml = require("yaml", "llm")
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidConfig(
                message(str(path), f"bytes that are no UTF-8 ({error.reason} at {error.start})", "a configuration is UTF-8",
                        "Save the file in UTF-8")
            ) from error  # fmt: skip
        except OSError as error:
            raise InvalidConfig(
                message(str(path), f"{type(error).__name__} ({error.strerror})", "a readable YAML file is needed",
                        "Check the path")
            ) from error  # fmt: skip
        except yaml.YAMLError as error:
            raise InvalidConfig(
                message(str(path), f"text that is not YAML ({error})", "a mapping of keys to values is needed",
                        "Correct the file")
            ) from error  # fmt: skip
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise InvalidConfig(
                message(
                    str(path),
                    type(values).__name__,
                    "a mapping of keys to values is needed",
                    "Write `key: value`",
                )
            )
        warn_of_flat(values, str(path))
        said = flattened(parse_overrides(overrides), "command line")
        return cls.from_dict({**flattened(values, str(path)), **said}, where=str(path))

    def override(self, *overrides: str) -> Config:
        """A copy with `key=value` texts applied."""
        return Config.from_dict({**self.asdict(), **flattened(parse_overrides(overrides), "override")})

    # -- checking

    def check(self) -> None:
        """Raise `InvalidConfig` unless every value is allowed, and what they name takes the others."""
        from bilevel_rl.levels.objectives import make_objective
        from bilevel_rl.policy_gradient.recipes import compose

        for f in dataclasses.fields(self):
            choices = f.metadata["choices"]
            if choices is not None and getattr(self, f.name) not in choices:
                raise InvalidConfig(
                    message(f"config.{f.name}", repr(getattr(self, f.name)),
                            did_you_mean(str(getattr(self, f.name)), choices), "Choose one of these")
                )  # fmt: skip
            rule = f.metadata["rule"]
            if rule is not None and not rule.holds(getattr(self, f.name)):
                raise InvalidConfig(
                    message(f"config.{f.name}", repr(getattr(self, f.name)), rule.text, f"Set {f.name} accordingly")
                )
        self.algorithm.check(make_objective(self.objective, self.tail))
        self._check_loggers()
        self._check_models()
        if self.recipe:
            compose(self.recipe)


    def _check_loggers(self) -> None:
        odd = [name for name in self.loggers if name not in LOGGERS]
        if odd:
            raise InvalidConfig(
                message("config.loggers", repr(odd[0]), did_you_mean(odd[0], LOGGERS), "Choose among these")
            )
        if self.patience and not self.eval_every:
            raise InvalidConfig(
                message("config.patience", self.patience, "it counts held-out evaluations, and there are none",
                        "Set held_out.every and held_out.prompts")
            )  # fmt: skip

    def _check_models(self) -> None:
        for key, wanted in (("quantised", "lora"), ("train", "full")):
            if getattr(self, key) and self.backend != wanted:
                raise InvalidConfig(
                    message(f"config.{key}", f"{getattr(self, key)!r} with backend={self.backend}",
                            f"it needs backend={wanted}", f"Set backend to {wanted}, or leave {key} out")
                )  # fmt: skip
        if self.weights == "bfloat16" and self.dtype != "bfloat16":
            raise InvalidConfig(
                message("config.weights", f"bfloat16 with dtype={self.dtype}", "forward passes are as fine as weights",
                        "Set dtype to bfloat16")
            )  # fmt: skip
        if self.generator and not (self.generator.startswith("vllm:http") or names.is_name(self.generator)):
            raise InvalidConfig(
                message("config.generator", repr(self.generator),
                        f"who writes is our sampler (empty), vllm:URL, or a function of the tokenizer ({names.OWN})",
                        "Write vllm:http://HOST:PORT, or the function")
            )  # fmt: skip


FORMER = {"credit": "leave_one_out", "level": "token", "gae_lambda": 0.95, "clip": 0.2}  # keys of before, and defaults


def former_keys(values: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """Values in which the keys `credit`, `level`, `gae_lambda` and `clip` of before are a recipe.

    Raises:
        InvalidConfig: a value that no recipe has, with the recipe to write.

    Example:
        >>> former_keys({"credit": "gae", "steps": 3})
        {'steps': 3, 'recipe': 'credit=gae(lam=0.95), loss=clipped(low=0.2, high=0.2, aggregate=sum_of_tokens)'}
    """
    given = {key: values[key] for key in FORMER if key in values}
    rest = {key: value for key, value in values.items() if key not in FORMER}
    if not given or {**FORMER, **given} == FORMER or rest.get("recipe"):
        return rest
    old = {**FORMER, **given}
    rules = {
        ("gae", "token"): f"gae(lam={old['gae_lambda']})", ("gae", "sequence"): f"gae(lam={old['gae_lambda']})",
        ("leave_one_out", "token"): "to_go_leave_one_out",
        ("leave_one_out", "sequence"): "to_go_leave_one_out(tokens=False)",
    }  # fmt: skip
    rule = rules.get((old["credit"], old["level"]))
    if rule is None:
        raise InvalidConfig(
            message(f"{where}.credit", f"{old['credit']!r} with level={old['level']!r}",
                    "how a policy learns is one key, recipe, and group_norm leaves the price of the KL unscaled there",
                    "Write recipe: grpo, or recipe: credit=group_norm, loss=clipped(aggregate=sum_of_tokens)")
        )  # fmt: skip
    clip = old["clip"]
    return rest | {"recipe": f"credit={rule}, loss=clipped(low={clip}, high={clip}, aggregate=sum_of_tokens)"}


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts as a mapping; values are read as Python literals, else kept as text.

    Raises:
        InvalidConfig: a text without `=`.

    Example:
        >>> parse_overrides(["steps=3", "estimator=paired", "objective={'gold': 1.0}"])
        {'steps': 3, 'estimator': 'paired', 'objective': {'gold': 1.0}}
    """
    values = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign:
            raise InvalidConfig(
                message("override", repr(text), "an override reads key=value", f"Write {text}=VALUE")
            )
        values[name.strip().lstrip("-").replace("-", "_")] = _literal(value.strip())
    return values


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _pairs(where: str, text: str) -> dict[str, str]:
    """`name=source, name=source` as a mapping."""
    found = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, sign, source = part.partition("=")
        if not sign or not name.strip() or not source.strip():
            raise InvalidConfig(message(where, repr(part), "it reads name=source, name=source", "Correct the text"))
        found[name.strip()] = source.strip()
    return found


def _coerce(where: str, f: dataclasses.Field, value: Any) -> Any:
    kind = str(f.type)
    if kind == "float" and isinstance(value, str):
        value = _literal(value)  # YAML reads 1e-3 as text
    good = {
        "str": isinstance(value, str),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, (int, float)) and not isinstance(value, bool),
        "bool": isinstance(value, bool),
        "list[str]": isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value),
        "list[int]": isinstance(value, (list, tuple)) and all(isinstance(v, int) for v in value),
        "dict[str, str]": isinstance(value, str)
        or (isinstance(value, dict) and all(isinstance(v, str) for v in value.values())),
        "dict[str, Any]": isinstance(value, dict) and all(isinstance(key, str) for key in value),
        "dict[str, float]": isinstance(value, str)
        or (isinstance(value, dict) and all(isinstance(v, (int, float)) for v in value.values())),
    }[kind]
    if not good:
        raise InvalidConfig(
            message(where, repr(value), f"a value of type {kind} is needed", "Correct the value")
        )
    if kind == "float":
        return float(value)
    if kind == "dict[str, str]" and isinstance(value, str):
        return _pairs(where, value)
    if kind.startswith("list"):
        return list(value)
    return value
