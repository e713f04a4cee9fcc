r"""What a run of any size would take on so many GPUs: memory by its parts, arithmetic, traffic, time; nothing is loaded.

Arithmetic and activations are counted, not estimated: one and two layers of the architecture are run on tensors without
numbers (Torch's fake tensors), forward and backward, with the run's adapters, and the rest is a straight line in the layers.
What an iteration does with them is the trainer's loop:

    write     each sampled policy: its prompts once, then a token a step from the cache
    score     reference and reward, forward
    learn     each policy and critic, forward and backward; x, forward and backward
    exchange  gradients of what trains, summed; with a sharded base the blocks, gathered whenever a block is called

Time is arithmetic over a card's rate, or weights and cache over its bandwidth where that takes longer, or what the host
takes to start a layer's kernels so often (`Host`): small models in small micro-batches wait for the host. Rates of cards are
those of their makers' sheets; what share of them a run reaches is an assumption that the plan names (`Gpu.reaches`,
`Gpu.streams`).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import torch

from bilevel_rl.errors import InvalidConfig, did_you_mean, message, require
from bilevel_rl.levels import requirements
from bilevel_rl.levels.objectives import make_objective
from bilevel_rl.llm import memory
from bilevel_rl.llm.config import Config
from bilevel_rl.policy_gradient.recipes import compose

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU and what connects it.

    Attributes:
        memory: GiB.
        rate: bfloat16 operations a second, dense.
        bandwidth: bytes a second of its own memory.
        link: bytes a second to a GPU of the same machine, one direction.
        network: bytes a second of a GPU to other machines.
        machine: GPUs of a machine.
        reaches: share of the rate that learning reaches. Ours: what trainers of this size report.
        streams: share of the bandwidth that writing reaches. Ours.
    """

    memory: float
    rate: float
    bandwidth: float
    link: float
    network: float = 50e9  # a 400 Gbit/s adapter each
    machine: int = 8
    reaches: float = 0.4
    streams: float = 0.6


@dataclasses.dataclass(frozen=True)
class Host:
    """Seconds below which a layer's pass does not fall however few rows it has.

    Measured on one machine with an H200 (`benchmarks/gpu.py`, docs/llm/gpu.md), Qwen2.5's layers, PEFT's adapters.

    Attributes:
        layer: a layer's forward pass without adapters, and
        adapter: what each adapted module of it adds.
        graph: passes without a graph that one with a graph takes as long as: forward, recomputation and backward.
        step: a layer's step of writing, captured, and
        step_adapter: what each adapted module adds.
    """

    layer: float = 0.9e-3
    adapter: float = 0.27e-3
    graph: float = 7.0
    step: float = 0.49e-3
    step_adapter: float = 0.02e-3


HOST = Host()
# NVIDIA's data sheets of the SXM modules; the link is half of "NVLink", which counts both directions
CARDS = {
    "h100": Gpu(80, 989e12, 3.35e12, 450e9), "h200": Gpu(141, 989e12, 4.8e12, 450e9),
    "a100": Gpu(80, 312e12, 2.04e12, 300e9), "rtx4090": Gpu(24, 165e12, 1.01e12, 32e9, network=3e9, machine=2),
}  # fmt: skip
# Qwen2.5's model cards: width, inner width, layers, heads, heads of keys and values, vocabulary, tied
SIZES = {
    "0.5B": (896, 4864, 24, 14, 2, 151_936, True), "1.5B": (1536, 8960, 28, 12, 2, 151_936, True),
    "3B": (2048, 11_008, 36, 16, 2, 151_936, True), "7B": (3584, 18_944, 28, 28, 4, 152_064, False),
    "14B": (5120, 13_824, 48, 40, 8, 152_064, False), "32B": (5120, 27_648, 64, 40, 8, 152_064, False),
    "72B": (8192, 29_568, 80, 64, 8, 152_064, False),
}  # fmt: skip


def known(size: str) -> Any:
    """The transformers configuration of Qwen2.5 in one of its sizes.

    Raises:
        InvalidConfig: a size that is not listed.

    Example:
        >>> known("7B").num_hidden_layers
        28
    """
    if size not in SIZES:
        raise InvalidConfig(message("llm plan --size", repr(size), did_you_mean(size, SIZES), "Choose one of them"))
    width, inner, layers, heads, keys, vocabulary, tied = SIZES[size]
    return require("transformers", "llm").Qwen2Config(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=keys, max_position_embeddings=32_768, tie_word_embeddings=tied,
    )  # fmt: skip


# -- counting -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Line:
    """A number that grows by the layer.

    Attributes:
        fixed: without any.
        each: of one layer.
    """

    fixed: float
    each: float

    def at(self, layers: int) -> float:
        """With so many."""
        return self.fixed + layers * self.each

    @classmethod
    def through(cls, one: float, two: float) -> Line:
        """From its values at one and at two layers.

        Example:
            >>> Line.through(5.0, 7.0).at(10)
            23.0
        """
        return cls(2 * one - two, two - one)


@dataclasses.dataclass(frozen=True)
class Pass:
    """The body of a policy on one row, without the head.

    Attributes:
        forward, backward: operations.
        kept: bytes for the backward pass.
        inputs: bytes of one layer's input, which recomputation keeps.
    """

    forward: Line
    backward: Line
    kept: Line
    inputs: float

    def held(self, layers: int, recomputes: bool) -> float:
        """Bytes kept for the backward pass; with recomputation one layer's, and every layer's input."""
        return self.kept.at(1) + layers * self.inputs if recomputes else self.kept.at(layers)


def counted(config: Config, shape: Any, tokens: int) -> Pass:
    """Operations and bytes of a policy's body, forward and backward, on one row of so many tokens."""
    found = [_count(config, shallow(shape, layers), tokens) for layers in (1, 2)]
    forward, backward, kept = (Line.through(one, two) for one, two in zip(*found, strict=True))
    return Pass(forward, backward, kept, tokens * _text(shape).hidden_size * _bytes(config))


def shallow(shape: Any, layers: int) -> Any:
    """An architecture with so many layers."""
    found = copy.deepcopy(shape)
    text = _text(found)
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return found


def _text(shape: Any) -> Any:
    return shape.get_text_config() if hasattr(shape, "get_text_config") else shape


def _count(config: Config, shape: Any, tokens: int) -> tuple[float, float, float]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    weights = "bfloat16" if config.dtype == "bfloat16" else "float32"  # as the passes compute
    roles, _ = memory.imagined(dataclasses.replace(config, quantised="", weights=weights), shape, alone=True)
    with FakeTensorMode(), roles.model("policy") as model:
        _as_on_cpu(model)
        own = {p.untyped_storage()._cdata for p in model.parameters()}
        kept: dict[int, int] = {}
        alive = []  # a storage that is freed gives its number to the next

        def keep(value: torch.Tensor) -> torch.Tensor:
            storage = value.untyped_storage()
            if storage._cdata not in own:
                kept[storage._cdata] = storage.nbytes()
            alive.append(value)
            return value

        ids = torch.zeros(1, tokens, dtype=torch.long)
        with FlopCounterMode(display=False) as first, torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
            hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[operator]
        with FlopCounterMode(display=False) as second:
            hidden.sum().backward()
    return float(first.get_total_flops()), float(second.get_total_flops()), float(sum(kept.values()))


def _as_on_cpu(model: torch.nn.Module) -> None:
    """Give a model on "meta" tensors that have a device, where attention is computed as on one, and still no numbers."""
    made: dict[int, torch.Tensor] = {}  # tied weights stay tied

    def of(old: torch.Tensor) -> torch.Tensor:
        if id(old) not in made:
            made[id(old)] = torch.empty(old.shape, dtype=old.dtype)
            if isinstance(old, torch.nn.Parameter):
                made[id(old)] = torch.nn.Parameter(made[id(old)], requires_grad=old.requires_grad)
        return made[id(old)]

    for module in model.modules():
        for place in (module._parameters, module._buffers):
            place.update({name: of(value) for name, value in place.items() if value is not None})  # type: ignore[misc]


def _bytes(config: Config) -> int:
    """Of a number in the forward passes."""
    return {"bfloat16": 2, "float32": 4, "float64": 8}[config.dtype]


@dataclasses.dataclass(frozen=True)
class Standing:
    """Bytes that are there throughout.

    Attributes:
        frozen: weights that never move, and
        blocks: those of them that can be in pieces.
        trained, optimiser: what trains, its gradients and moments, and
        trained_blocks, optimiser_blocks: what of them can be in pieces.
        called: what of one network can be in pieces, and is gathered when it is called, and
        at_work: what is whole at a time: a block, the next one, a head, with their gradients.
        x: what of it is the upper variable.
        read: what writing a token reads: the policy's own weights, frozen and trained.
        critics, referred: whether there are critics, and a reference.
    """

    frozen: float
    blocks: float
    trained: float
    optimiser: float
    trained_blocks: float
    optimiser_blocks: float
    called: float
    at_work: float
    x: float
    read: float
    critics: bool
    referred: bool


@dataclasses.dataclass(frozen=True)
class Counted:
    """What is counted of an architecture, whatever the number of GPUs.

    Attributes:
        layers, width, vocabulary: of the architecture.
        row, prompt: the body on a whole row, and on a prompt.
        standing: what is held throughout.
        cached: bytes of keys and values, a token.
    """

    layers: int
    width: int
    vocabulary: int
    row: Pass
    prompt: Pass
    standing: Standing
    cached: float


def count(config: Config, shape: Any) -> Counted:
    """Count an architecture: a transformers configuration, a hub id or a folder."""
    if isinstance(shape, str):
        shape = require("transformers", "llm").AutoConfig.from_pretrained(shape, trust_remote_code=False)
    text, prompt = _text(shape), config.max_prompt_tokens
    layers = text.num_hidden_layers
    return Counted(
        layers, text.hidden_size, text.vocab_size, counted(config, shape, prompt + config.max_new_tokens),
        counted(config, shape, prompt), _standing(config, shape, layers), _cached(config, shape, layers),
    )  # fmt: skip


# -- the plan -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a run takes, of each GPU and for each iteration.

    Attributes:
        gpus: how many.
        sharded: whether weights are in pieces.
        weights, trained, optimiser, vocabulary, activations, cache: bytes: frozen weights; trained ones or adapters; their
            gradients and moments; the vocabulary-wide tensors of a pass and their gradients; what the blocks keep for it;
            the cache of writing.
        writing, learning: operations.
        streamed: bytes of weights and cache that writing reads.
        exchanged: bytes sent while learning, and
        gathered: while writing.
        tokens: written in an iteration, by all GPUs together.
        labels: asked for in an iteration, and
        whole_labels: in the run.
        card: on which it would run.
        starting, stepping: seconds that the host takes at least to start the passes of learning, and the steps of writing.
    """

    gpus: int
    sharded: bool
    weights: float
    trained: float
    optimiser: float
    vocabulary: float
    activations: float
    cache: float
    writing: float
    learning: float
    streamed: float
    exchanged: float
    gathered: float
    tokens: int
    labels: int
    whole_labels: int
    card: Gpu
    starting: float = 0.0
    stepping: float = 0.0

    @property
    def total(self) -> float:
        """Bytes at the highest point: writing and a pass with a graph do not happen at once."""
        standing = self.weights + self.trained + self.optimiser
        return standing + max(self.vocabulary + self.activations, self.cache)

    def fits(self, memory: float | None = None) -> bool:
        """Whether it fits GPUs of so many GiB, with a tenth left to the allocator."""
        return self.total <= 0.9 * GIB * (self.card.memory if memory is None else memory)

    @property
    def speed(self) -> float:
        """Bytes a second between GPUs: the slower way where they fill more than a machine."""
        return self.card.link if self.gpus <= self.card.machine else self.card.network

    @property
    def seconds(self) -> dict[str, float]:
        """Of an iteration, by what it does."""
        rate = self.card.rate * self.card.reaches
        return {
            "writing": max(self.writing / rate, self.streamed / (self.card.bandwidth * self.card.streams), self.stepping),
            "learning": max(self.learning / rate, self.starting),
            "communication": (self.exchanged + self.gathered) / self.speed,
        }

    def rows(self) -> list[tuple[str, str, str]]:
        """(quantity, value, meaning), for printing."""
        g = lambda value: f"{value / GIB:.2f} GiB"  # noqa: E731
        time = self.seconds
        whole = sum(time.values())
        waits = ", of the host: larger micro-batches" if time["learning"] == self.starting else ""
        return [
            ("weights", g(self.weights), "frozen" + (", their piece and the blocks at work" if self.sharded else "")),
            ("trained", g(self.trained), "adapters and heads, or all that trains"),
            ("optimiser", g(self.optimiser), "gradients, moments, masters"),
            ("vocabulary", g(self.vocabulary), "logits and laws of a pass"),
            ("activations", g(self.activations), "what the blocks keep for the backward pass"),
            ("cache", g(self.cache), "keys and values while writing"),
            ("total", g(self.total), "at the highest point: writing and passes take turns"),
            ("writing", f"{self.writing:.3g} operations", f"{time['writing']:.2f} s, {time['writing'] / whole:.0%}"),
            ("learning", f"{self.learning:.3g} operations",
             f"{time['learning']:.2f} s, {time['learning'] / whole:.0%}{waits}"),
            ("communication", g(self.exchanged + self.gathered),
             f"{time['communication']:.2f} s at {self.speed / 1e9:.0f} GB/s"),
            ("iteration", f"{whole:.2f} s", f"{self.tokens:,} tokens written, {self.tokens / whole:,.0f} a second"),
            ("labels", f"{self.labels} an iteration", f"{self.whole_labels:,} in the run"),
        ]  # fmt: skip


def foresee(config: Config, shape: Any, gpus: int = 1, card: Gpu = CARDS["h100"], sharded: bool = False) -> Forecast:
    """Forecast a run; see the module's head.

    Args:
        config: of the run.
        shape: a transformers configuration, a hub id or a folder; or what `count` has counted of one.
        gpus: one process each; rows of an iteration are divided among them.
        card: what they are.
        sharded: whether weights are in pieces (FSDP2): the blocks of the frozen base, or those of all networks.

    Raises:
        InvalidConfig: more GPUs than prompts.

    Example:
        >>> from transformers import GPT2Config
        >>> tiny = GPT2Config(vocab_size=64, n_embd=16, n_layer=3, n_head=2, n_positions=128)
        >>> one, two = (foresee(Config(prompts_per_step=4), tiny, gpus) for gpus in (1, 2))
        >>> one.writing == 2 * two.writing, one.exchanged, two.exchanged > 0
        (True, 0.0, True)
    """
    counts = shape if isinstance(shape, Counted) else count(config, shape)
    _check(config, gpus)
    layers, size, width = counts.layers, counts.vocabulary, counts.width
    rows, prompt, new = config.batch // gpus, config.max_prompt_tokens, config.max_new_tokens
    forward, backward = counts.row.forward.at(layers), counts.row.backward.at(layers)
    read, standing = counts.prompt.forward.at(layers), counts.standing
    part = min(config.micro_batch or rows, rows)
    head = 2.0 * width * size
    whole = config.backend == "full" and not config.train
    method = config.algorithm
    policies = method.networks
    writers = policies if method.own_rows or policies == 1 else 1

    # writing: the prompts at once, then a token of every row a step
    grown = forward - read
    writing = writers * rows * (read + grown + head * new)
    cache_token = counts.cached
    cache = rows * (prompt + new) * cache_token + rows * size * 8
    steps = new * writers
    streamed = steps * (standing.read + rows * (prompt + new / 2) * cache_token)

    # learning: the same passes as operations, and as micro-batches that the host starts
    passes = _passes(config, rows, writers, standing)
    twice = forward if config.gradient_checkpointing else 0.0  # activations are computed again
    back = backward + twice, head * new * (2 if whole else 1)  # of the body and of the head
    learning = sum(
        one.rows * (forward + one.graph * back[0] + one.head * (head * (new + 1) + one.graph * back[1])) for one in passes
    )
    started = [sum(one.rows for one in passes if one.graph == graph) / part for graph in (False, True)]
    starting, stepping = _host(config, layers, started[0], started[1], steps)

    # exchange: a ring sends nearly twice what it sums; blocks are gathered for every call
    ring = 2 * (gpus - 1) / gpus
    # x's gradient is summed in its two parts: of f, and of how the policy answers
    exchanged = ring * (standing.trained + (standing.x if method.answers else 0.0))
    gathered = 0.0
    frozen, trained, optimiser = standing.frozen, standing.trained, standing.optimiser
    if sharded and gpus > 1:
        absent = 1 - 1 / gpus
        blocks = standing.called * absent
        parts = -(-rows // part)
        # a base is gathered once a token, a policy of its own weights once a rollout, while which it is whole
        gathered = writers * (1 if standing.trained_blocks else new + 1) * blocks
        cache += blocks if standing.trained_blocks else 0.0
        exchanged += blocks * parts * (2 * policies * config.epochs + writers + 2)
        # gradients of pieces are summed into pieces: half a ring
        exchanged -= standing.trained_blocks * absent
        frozen += standing.at_work - standing.blocks * absent
        trained, optimiser = trained - standing.trained_blocks * absent, optimiser - standing.optimiser_blocks * absent
    graphs = policies if not config.micro_batch else 1
    return Forecast(
        gpus, sharded and gpus > 1, frozen, trained, optimiser,
        memory.vocabulary_bytes(config, part, size) + memory.passing_bytes(config, part, size),
        graphs * part * counts.row.held(layers, config.gradient_checkpointing), cache, writing, learning, streamed,
        exchanged, gathered, config.batch * new * writers, *_labels(config), card, starting, stepping,
    )  # fmt: skip


class _Rows(NamedTuple):
    """Rows that an iteration passes through a network.

    Attributes:
        rows: how many.
        graph: with one, and a backward pass through it.
        head: whether logits are taken of every token.
    """

    rows: float
    graph: bool
    head: bool


def _passes(config: Config, rows: int, writers: int, standing: Standing) -> list[_Rows]:
    """All passes of an iteration's learning, network by network, of so many rows of each policy."""
    networks = config.algorithm.networks
    in_one = config.settings.one_pass and config.epochs == 1 and not 0 < config.micro_batch < rows
    plain, graph = _reward(config, rows * writers)
    return [
        # policies; scored apart where rows come in parts or are used again
        _Rows(0 if in_one else networks * rows, graph=False, head=True),
        _Rows(networks * config.epochs * rows, graph=True, head=True),
        _Rows(writers * rows * standing.referred, graph=False, head=True),  # the reference
        _Rows(networks * rows * standing.critics, graph=False, head=False),
        _Rows(networks * config.epochs * rows * standing.critics, graph=True, head=False),
        _Rows(plain, graph=False, head=False),  # the reward
        _Rows(graph, graph=True, head=False),
    ]


def _standing(config: Config, shape: Any, layers: int) -> Standing:
    """Counted at one and two layers; every layer is like another."""
    critics = "value" in requirements.needs(compose(config.recipe or "token_rloo"))
    found = []
    for few in (1, 2):
        roles, size = memory.imagined(config, shallow(shape, few), critics=critics)
        parts = memory.estimate_memory(config, roles, 1, size)
        trained = sum(p.numel() * p.element_size() for role in roles.names for p in roles.parameters(role).values())
        policy = sum(p.numel() * p.element_size() for p in roles.parameters("policy").values())
        x = sum(p.numel() * p.element_size() for p in roles.parameters("reward").values())
        frozen = parts.weights - trained
        read = policy + (frozen if config.backend == "lora" or config.train else 0)
        found.append((frozen, trained, parts.training, x, read, policy))
    frozen, trained, optimiser, x, read, policy = (Line.through(one, two) for one, two in zip(*found, strict=True))
    lora, tied = config.backend == "lora", getattr(_text(shape), "tie_word_embeddings", True)
    nothing = Line(0.0, 0.0)
    divided = (nothing, nothing, frozen) if lora else (trained, optimiser, policy)
    # with the two ends over the vocabulary where they are apart; norms and small heads beside them count for nothing
    trained_blocks, optimiser_blocks, called = (layers * d.each + (0.0 if tied else d.fixed) for d in divided)
    network = divided[-1]
    at_work = (2 if lora else 3) * network.each + (0.0 if tied else (1 if lora else 2) * network.fixed / 2)
    blocks = layers * frozen.each + (0.0 if tied else frozen.fixed)
    referred = config.algorithm.asks or config.tau != 0  # as the trainer decides
    return Standing(
        frozen.at(layers), 0.0 if config.train and not lora else blocks, trained.at(layers), optimiser.at(layers),
        trained_blocks, optimiser_blocks, called, at_work, x.at(layers), read.at(layers), critics, referred,
    )  # fmt: skip


def _cached(config: Config, shape: Any, layers: int) -> float:
    """Bytes of keys and values, a token."""
    text = _text(shape)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2.0 * layers * heads * width * _bytes(config)


def _reward(config: Config, rows: int) -> tuple[float, float]:
    """Rows that the reward model scores, and rows that x learns from with a graph."""
    if config.reward not in ("classifier", "linear"):
        return 0.0, 0.0
    if config.reward == "linear":  # on features of the reference, which have no gradient; they are not kept
        return rows * (1.0 + config.algorithm.answers), 0.0
    fits = config.algorithm.asks and make_objective(config.objective, config.tail).needs_pairs
    pairs = (config.replay_pairs or config.pairs_per_step) if fits else 0
    # x learns from the rows that answer it, and from both sides of each pair
    return float(rows), rows * config.algorithm.answers + 2.0 * pairs


def _host(config: Config, layers: int, scores: float, graphs: float, steps: int) -> tuple[float, float]:
    """Seconds to start so many passes without and with a graph, and so many steps of writing."""
    adapted = (len(config.lora_targets) or 1) if config.backend == "lora" else 0  # by default attention's one
    layer = HOST.layer + adapted * HOST.adapter
    return layers * layer * (scores + HOST.graph * graphs), layers * steps * (HOST.step + adapted * HOST.step_adapter)


def _labels(config: Config) -> tuple[int, int]:
    """The judge's labels, of an iteration and of the run."""
    if not config.algorithm.asks or not make_objective(config.objective, config.tail).needs_pairs:
        return 0, 0
    whole = config.pairs_per_step * config.steps
    return config.pairs_per_step, min(whole, config.label_budget) if config.label_budget else whole


def _check(config: Config, gpus: int) -> None:
    if gpus < 1 or config.prompts_per_step % gpus:
        raise InvalidConfig(
            message("llm plan --gpus", gpus, f"each GPU gets equally many of the {config.prompts_per_step} prompts_per_step",
                    "Choose a divisor, or raise prompts_per_step")
        )  # fmt: skip
