"""Who trains: two policies, two critics, the reward model, and the frozen reference, behind one interface.

`FullRoles` keeps separate weights for each. `LoraRoles` keeps one frozen base with one adapter (and a scalar head) a
role; the reference is the base with its adapters off. Both answer the same five questions: `model(role)`,
`logits(role, rollout)`, `values(role, rollout)`, `rewards(rollout)` and `parameters(role)`.
"""

from __future__ import annotations

import abc
import contextlib
import copy
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message, require
from bilevel_rl.levels.engine import CRITICS, POLICIES, REWARD
from bilevel_rl.levels.weights import Weights
from bilevel_rl.llm.forward import without
from bilevel_rl.llm.rewards.models import ClassifierReward, LinearReward
from bilevel_rl.llm.roles.policy import completion_logits, hidden_states
from bilevel_rl.llm.sampling.rollout import Rollout

log = logging.getLogger(__name__)

class Roles(Weights):
    """The interface; see the module's head.

    Attributes:
        names: roles that train, in a fixed order.
        reward: the reward module, a rollout in and [N] out.
        temperature: divides the logits of policies and reference.
        unheld: [V] True for ids that no text can hold: outside every law.
        joined: parameters from elsewhere that train with a role.
        has_reference: whether anything reads the reference; where not, its law is not computed.
        came: types of 16 bits in which models came, by role; exports leave in them.
    """

    names: tuple[str, ...]
    reward: nn.Module
    temperature: float = 1.0
    unheld: Tensor | None = None
    joined: Mapping[str, dict[str, nn.Parameter]] = {}
    has_reference: bool = True
    came: Mapping[str, torch.dtype] = {}

    def join(self, role: str, parameters: Mapping[str, nn.Parameter]) -> None:
        """Let parameters from elsewhere train with a role (a constraint's multiplier with x)."""
        device = next(iter(self.parameters(role).values()))
        for p in parameters.values():
            p.data = p.data.to(device)
        self.joined = {**self.joined, role: dict(parameters)}

    @abc.abstractmethod
    def model(self, role: str) -> contextlib.AbstractContextManager[nn.Module]:
        """The causal language model of a policy role, or of "reference", ready to be called inside `with`."""

    @abc.abstractmethod
    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """A role's trained parameters by name, in a fixed order."""

    @abc.abstractmethod
    def values(self, role: str, rollout: Rollout) -> Tensor:
        """[N, T] a critic's value of the state before each completion token."""

    @contextlib.contextmanager
    def writing(self, role: str) -> Iterator[nn.Module]:
        """`model(role)` for a whole rollout: weights in pieces are gathered once, where there is room."""
        with self.model(role) as model, self.pieces.gathered(model):
            yield model

    def logits(self, role: str, rollout: Rollout) -> Tensor:
        """[N, T, V] logits of a policy (or the reference) at each completion token."""
        with self.model(role) as model:
            return without(completion_logits(model, rollout, self.temperature), self.unheld)

    def rewards(self, rollout: Rollout) -> Tensor:
        """[N] rewards, differentiable in x."""
        return self.reward(rollout)

    def stood_on(self) -> dict[str, Tensor]:
        """The frozen tensors by name: no checkpoint has them, and a run can't go on with others."""
        return {name: p.detach() for name, p in self.standing().named_parameters() if not p.requires_grad}

    @abc.abstractmethod
    def standing(self) -> nn.Module:
        """The frozen model: the reference, or the base with its adapters."""

    def trained(self) -> int:
        """Number of trained numbers, all roles."""
        return sum(self.pieces.shape(p).numel() for role in self.names for p in self.parameters(role).values())

    @abc.abstractmethod
    def frozen(self) -> int:
        """Number of frozen numbers held in memory."""


class FullRoles(Roles):
    """Separate weights for each role: for tiny models, and the reference that `LoraRoles` is tested against.

    Args:
        policy: theta's model; it is trained in place.
        reward: "classifier" or "linear", or a module that maps a rollout to [N] rewards.
        penalised: whether theta_l is there.
        critics: whether critics are there.
        reference: the frozen reference; None: a copy of the policy.
        temperature: divides the logits.
        train: names of weights that train, or parts of them; the others are frozen, and held once. None: all.
        referred: False: no reference is held.

    Raises:
        InvalidConfig: a name in `train` that no weight has.
    """

    def __init__(
        self, policy: nn.Module, reward: Any = "classifier", penalised: bool = True, critics: bool = False,
        reference: nn.Module | None = None, temperature: float = 1.0, train: Sequence[str] = (), referred: bool = True,
    ) -> None:  # fmt: skip
        self.temperature = temperature
        self.divided: dict[str, dict[str, nn.Parameter]] = {}  # what trains of roles in pieces (`sharding`)
        held = trunk(policy, train)
        self.reference: nn.Module | None = None
        if referred:
            self.reference = freeze(copied(policy, held)) if reference is None else freeze(reference)
        self.modules: dict[str, nn.Module] = {"policy": trainable(policy, held)}
        if penalised:
            self.modules["policy_l"] = trainable(copied(policy, held), held)
        if critics:
            for name in CRITICS[: 1 + penalised]:
                self.modules[name] = trainable(_Critic(policy))
        self.reward = self._make_reward(reward, policy)
        self.modules[REWARD] = self.reward
        self.names = tuple(self.modules)
        for module in (*self.modules.values(), *([self.reference] if referred else [])):
            no_dropout(module)

    def _make_reward(self, reward: Any, policy: nn.Module) -> nn.Module:
        if reward == "classifier":
            return trainable(ClassifierReward(classifier_like(policy)))
        if reward == "linear":
            reference = self.standing()
            _need_body(reference, "reward: linear")

            def features(rollout: Rollout) -> Tensor:
                hidden = hidden_states(reference, rollout)
                return hidden[torch.arange(rollout.size, device=hidden.device), rollout.last]

            return LinearReward(features, _width(reference), of_reference=True)
        return reward

    @contextlib.contextmanager
    def model(self, role: str) -> Iterator[nn.Module]:
        """See `Roles`."""
        yield self.standing() if role == "reference" else self.modules[role]

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """See `Roles`."""
        own = self.divided.get(role)
        if own is None:
            own = {name: p for name, p in self.modules[role].named_parameters() if p.requires_grad}
        return own | self.joined.get(role, {})

    def values(self, role: str, rollout: Rollout) -> Tensor:
        """See `Roles`."""
        return self.modules[role](rollout)

    def standing(self) -> nn.Module:
        """See `Roles`."""
        if self.reference is None:
            raise InvalidConfig(
                message("reference", "none", "plain fine-tuning with tau: 0 holds none", "Set tau above 0 to have one")
            )
        return self.reference

    def stood_on(self) -> dict[str, Tensor]:
        """See `Roles`."""
        return super().stood_on() if self.reference is not None else {}

    def frozen(self) -> int:
        """See `Roles`."""
        return 0 if self.reference is None else sum(p.numel() for p in _kept_here(self.reference))


class _Critic(nn.Module):
    """A copy of the policy's body with a scalar head that starts at zero."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        _need_body(policy, "a recipe with critics")
        self.body = copy.deepcopy(policy.base_model)
        self.head = nn.Linear(_width(policy), 1).to(next(policy.parameters()))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, rollout: Rollout) -> Tensor:
        return read_values(hidden_states(self.body, rollout), self.head, rollout)


class LoraRoles(Roles):
    """One frozen base, one LoRA adapter a role, heads for critics and reward; the reference is the bare base.

    Args:
        policy: the base; its weights are frozen and get adapters in place.
        reward: "classifier" for an adapter and head on the same base, or a module of its own.
        penalised, critics: as for `FullRoles`.
        rank, scale, targets: of the adapters; no targets: PEFT's default for the architecture.
        temperature: divides the logits.

    Raises:
        InvalidConfig: targets that match no module.
    """

    def __init__(
        self, policy: nn.Module, reward: Any = "classifier", penalised: bool = True, critics: bool = False,
        rank: int = 8, scale: float = 2.0, targets: Sequence[str] = (), temperature: float = 1.0,
    ) -> None:  # fmt: skip
        peft = require("peft", "llm")
        self.temperature = temperature
        self.names = ("policy",) + (("policy_l",) if penalised else ())
        if critics:
            self.names += CRITICS[: 1 + penalised]
        self.names += (REWARD,)
        shared_reward = reward == "classifier"
        adapters = [name for name in self.names if name != REWARD or shared_reward]
        _need_body(policy, "backend: lora")
        config = peft.LoraConfig(
            r=rank, lora_alpha=scale * rank, lora_dropout=0.0, task_type="CAUSAL_LM",
            target_modules=list(targets) or None, fan_in_fan_out=_conv1d(policy),
        )  # fmt: skip
        freeze(policy)
        try:
            with (
                warnings.catch_warnings()
            ):  # PEFT asks transformers with a name that transformers has renamed
                warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")
                warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # said below
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True but the target module")
                self.peft = peft.get_peft_model(policy, config, adapter_name=adapters[0])
                for name in adapters[1:]:
                    self.peft.add_adapter(name, copy.deepcopy(config))
        except ValueError as error:
            raise InvalidConfig(
                message("config.lora_targets", repr(list(targets)) if targets else "no targets for this architecture",
                        "at least one module's name must match", f"Name the linear layers to adapt, e.g. "
                        f"{_linear_names(policy)}")
            ) from error  # fmt: skip
        self.base = self.peft.get_base_model()
        _warn_of_tied(self.base)
        with torch.no_grad():  # one start for both followers: their difference must begin at zero
            for one, other in (POLICIES, CRITICS):
                if {one, other} <= set(adapters):
                    first, second = self._adapter(one), self._adapter(other)
                    for key, value in first.items():
                        second[key.replace(f".{one}.", f".{other}.")].copy_(value)
        self.heads = nn.ModuleDict()
        device = next(policy.parameters())
        for name in self.names:
            if name in CRITICS or (name == REWARD and shared_reward):
                head = nn.Linear(_width(policy), 1, bias=name in CRITICS).to(device.device, _head_type(device))
                nn.init.zeros_(head.weight)
                if head.bias is not None:
                    nn.init.zeros_(head.bias)
                self.heads[name] = head
        self.reward = _LoraReward(self) if shared_reward else self._own_reward(reward)
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        for name in self.names:
            mine = self._adapter(name) if name in adapters else {}
            if name in self.heads:
                mine |= {f"head.{key}": p for key, p in self.heads[name].named_parameters()}
            if name == REWARD and not shared_reward:
                mine = {key: p for key, p in self.reward.named_parameters() if p.requires_grad}
            self._parameters[name] = mine
        self._own = [p for mine in self._parameters.values() for p in mine.values()]
        self.active: str | None = None
        no_dropout(self.peft)
        self._thaw()

    def _own_reward(self, reward: Any) -> nn.Module:
        if reward != "linear":
            return reward

        def features(rollout: Rollout) -> Tensor:
            with self.model("reference") as model:
                hidden = hidden_states(model, rollout)
            return hidden[torch.arange(rollout.size, device=hidden.device), rollout.last]

        return LinearReward(features, _width(self.base), of_reference=True)

    def _adapter(self, name: str) -> dict[str, nn.Parameter]:
        return {key: p for key, p in self.base.named_parameters() if f".{name}." in key and ".lora_" in key}

    def _thaw(self) -> None:
        # PEFT's set_adapter freezes the other adapters, and leaving disable_adapter freezes them again
        for parameter in self._own:
            parameter.requires_grad_(True)

    @contextlib.contextmanager
    def model(self, role: str) -> Iterator[nn.Module]:
        """See `Roles`. With gradient checkpointing, the backward pass belongs inside the same `with`."""
        if role == REWARD and REWARD not in self.heads:  # a reward model of its own, not an adapter
            yield self.reward
            return
        before = self.active
        self._activate(role)
        try:
            yield self.base
        finally:
            if before is not None and before != role:
                self._activate(before)

    def _activate(self, role: str) -> None:
        if role == "reference":
            self.peft.base_model.disable_adapter_layers()
        else:
            if self.active in (None, "reference"):
                self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(role)
        self._thaw()
        self.active = role

    def parameters(self, role: str) -> dict[str, nn.Parameter]:
        """See `Roles`."""
        return self._parameters[role] | self.joined.get(role, {})

    def values(self, role: str, rollout: Rollout) -> Tensor:
        """See `Roles`."""
        with self.model(role) as model:
            return read_values(hidden_states(model, rollout), self.heads[role], rollout)

    def standing(self) -> nn.Module:
        """See `Roles`."""
        return self.base

    def frozen(self) -> int:
        """See `Roles`."""
        own = {id(p) for p in self._own}
        return sum(p.numel() for p in _kept_here(self.base, own))


class _LoraReward(nn.Module):
    """The reward role of `LoraRoles`: adapter and head, read at the last real token."""

    def __init__(self, roles: LoraRoles) -> None:
        super().__init__()
        self._roles = [roles]  # in a list, so that the base is not a submodule of this module

    def forward(self, rollout: Rollout) -> Tensor:
        roles = self._roles[0]
        with roles.model(REWARD) as model:
            hidden = hidden_states(model, rollout)
            last = hidden[torch.arange(rollout.size, device=hidden.device), rollout.last]
            return roles.heads[REWARD](last)[:, 0]


def _kept_here(model: nn.Module, but: Collection[int] = ()) -> Iterator[Tensor]:
    """A model's weights, of those in pieces the part that this process keeps; without those of the ids `but`."""
    return (p.to_local() if hasattr(p, "to_local") else p for p in model.parameters() if id(p) not in but)


def _warn_of_tied(base: nn.Module) -> None:
    """Say when an adapter stands on a weight that two layers share: merged, it changes both."""
    weights: dict[int, list[str]] = {}
    for name, module in base.named_modules():
        layer = getattr(module, "base_layer", module)
        if isinstance(getattr(layer, "weight", None), nn.Parameter) and not name.endswith("base_layer"):
            weights.setdefault(id(layer.weight), []).append(name)
    adapted = {name for name, module in base.named_modules() if hasattr(module, "base_layer")}
    for names in weights.values():
        for name in adapted.intersection(names) if len(names) > 1 else ():
            log.warning(
                "%s shares its weight with the embedding (%s): an adapter on it is exact while it stays an adapter, but "
                "merging the export changes the embedding too; leave it out of lora_targets, or do not merge",
                name, ", ".join(other for other in names if other != name),
            )  # fmt: skip


def read_values(hidden: Tensor, head: nn.Module, rollout: Rollout) -> Tensor:
    """[N, T] values from hidden states [N, P + T, H]: the state before token t is what column P + t - 1 has read."""
    before = hidden[:, rollout.width - 1 : rollout.width - 1 + rollout.horizon]
    return head(before)[..., 0]


def classifier_like(policy: nn.Module) -> nn.Module:
    """A sequence classifier with one label whose body is a copy of the policy's and whose head starts at zero."""
    transformers = require("transformers", "llm")
    _need_body(policy, "reward: classifier")
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    config.architectures = None
    if config.pad_token_id is None:
        config.pad_token_id = 0
    try:
        model = transformers.AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InvalidConfig(
            message("config.reward", f"classifier with a {type(policy).__name__}",
                    "transformers has no sequence classifier of this architecture", "Pass a reward module of your own")
        ) from error  # fmt: skip
    first = next(policy.parameters())
    model = model.to(device=first.device, dtype=first.dtype)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    nn.init.zeros_(model.score.weight)
    return model.eval()


def trainable(module: nn.Module, held: Collection[str] = ()) -> nn.Module:
    """The module with every floating-point parameter trained that is not among the names `held`."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and name not in held)
    return module


def trunk(policy: nn.Module, train: Sequence[str]) -> set[str]:
    """Names of the weights that do not train: those that hold no part of `train`; none where it is empty.

    Raises:
        InvalidConfig: a part that no name holds.
    """
    names = [name for name, _ in policy.named_parameters()]
    for part in train:
        if not any(part in name for name in names):
            raise InvalidConfig(
                message("config.train", repr(part), "it is in no weight's name",
                        f"Name parts of these: {', '.join(names[-4:])}")
            )  # fmt: skip
    return {name for name in names if train and not any(part in name for part in train)}


def copied(policy: nn.Module, held: Collection[str]) -> nn.Module:
    """A copy with weights of its own, but for those in `held`, which both have."""
    kept = {id(p): p for name, p in policy.named_parameters() if name in held}
    return copy.deepcopy(policy, kept)


def _head_type(weight: Tensor) -> torch.dtype:
    """Heads are trained: 32 bits at least, whatever the base is held in."""
    return weight.dtype if weight.dtype in (torch.float32, torch.float64) else torch.float32


def freeze(module: nn.Module) -> nn.Module:
    """The module with no parameter trained."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def no_dropout(module: nn.Module) -> None:
    """Evaluation mode, and every dropout at 0: a rollout and its gradient must come from the same law."""
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def checkpoint_activations(module: nn.Module) -> None:
    """Recompute activations in the backward pass; `forward.recomputing` switches it on for forward passes with a graph.

    Raises:
        InvalidConfig: a model that does not support it.
    """
    models = [m for m in module.modules() if getattr(m, "supports_gradient_checkpointing", False)]
    if not models:
        raise InvalidConfig(
            message("config.gradient_checkpointing", f"true with a {type(module).__name__}",
                    "the model does not support it", "Set gradient_checkpointing to false")
        )  # fmt: skip
    options = {"use_reentrant": False}
    if hasattr(models[0], "activation_checkpointing_enable"):
        models[0].activation_checkpointing_enable(options)
    else:  # transformers before 5.20
        models[0].gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def _need_body(policy: nn.Module, what: str) -> None:
    if not hasattr(policy, "config") or not hasattr(policy, "base_model"):
        raise InvalidConfig(
            message(what, f"a policy of type {type(policy).__name__}", "it needs a transformers model with a body",
                    "Use a transformers model, or give reward and credit that need no body")
        )  # fmt: skip


def _width(policy: nn.Module) -> int:
    return int(policy.config.get_text_config().hidden_size)


def _conv1d(policy: nn.Module) -> bool:
    return any(type(m).__name__ == "Conv1D" for m in policy.modules())


def _linear_names(policy: nn.Module) -> list[str]:
    names = {
        name.rsplit(".", 1)[-1] for name, m in policy.named_modules()
        if type(m).__name__ in ("Linear", "Conv1D") and "head" not in name
    }  # fmt: skip
    return sorted(names)
