"""What an offline run needs before RL can start: a tokenizer, a tiny language model, a text classifier. Each
is cached.

A stage is a folder named by a digest of everything that decides its content. It is written beside its final
name and renamed into place, so a folder that exists is complete, and a second run, or one after a kill, makes
only what is missing. Weights are safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from bilevel_rl.errors import InvalidConfig, NonFiniteState, message
from bilevel_rl.llm.loading import encode, label_probabilities, load_language_model, pad_rows, positions
from bilevel_rl.records import make_folder, read_json, write_json

END, PAD = "<|endoftext|>", "<|pad|>"


@dataclasses.dataclass(frozen=True)
class LanguageModelConfig:
    """Size and training of the tiny causal language model.

    Attributes:
        vocabulary: byte-level BPE tokens, end and padding included; at least 258 (256 bytes and these two).
        layers, width, heads: of a GPT-2 block stack.
        context: positions the model has, in tokens.
        steps, batch: AdamW updates and tweets an update.
        learning_rate: peak, after a 5 % linear warm-up; then a cosine to a tenth of it.
        seed: of the initial weights and the order of the data.
    """

    vocabulary: int = 1024
    layers: int = 2
    width: int = 128
    heads: int = 4
    context: int = 64
    steps: int = 600
    batch: int = 64
    learning_rate: float = 3e-3
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
    """Size and training of the text classifier (the same block stack with a head on the end token).

    Attributes:
        layers, width, heads, context: as for the language model; ignored when it starts from a language
            model.
        epochs, batch: passes over the labelled tweets, tweets an update.
        learning_rate: peak of the same schedule.
        dropout: on residuals, attention and embeddings, in training only.
        seed: of the initial weights and the order of the data.
    """

    layers: int = 2
    width: int = 96
    heads: int = 4
    context: int = 64
    epochs: int = 3
    batch: int = 32
    learning_rate: float = 3e-3
    dropout: float = 0.1
    seed: int = 0


class CachedStage(NamedTuple):
    """A cached result.

    Attributes:
        folder: where it lies.
        figures: what was measured when it was made (losses, accuracies, seconds).
        made: whether this call made it (False: it was there).
    """

    folder: Path
    figures: dict[str, Any]
    made: bool


def stage(
    root: str | Path, name: str, inputs: Mapping[str, Any], make: Callable[[Path], dict[str, Any]]
) -> CachedStage:
    """Return the folder of `name` for these inputs, making it first if it is not there.

    Args:
        root: cache folder.
        name: first part of the folder's name.
        inputs: plain JSON values that decide the content.
        make: writes the content into the folder it is given and returns its figures.

    Raises:
        StorageFailed: the cache folder can't be written.
    """
    root = make_folder(root)
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:12]
    target = root / f"{name}-{digest}"
    with filelock.FileLock(root / f".{target.name}.lock"):
        if (target / "stage.json").exists():
            return CachedStage(target, read_json(target / "stage.json")["figures"], False)
        temporary = root / f".{target.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        try:
            begin = time.perf_counter()
            figures = {**make(temporary), "seconds": round(time.perf_counter() - begin, 1)}
            write_json(temporary / "stage.json", {"name": name, "inputs": dict(inputs), "figures": figures})
            shutil.rmtree(
                target, ignore_errors=True
            )  # a folder without stage.json: not ours, or torn by hand
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return CachedStage(target, figures, True)


def fingerprint(texts: Iterable[str]) -> str:
    """Digest of a list of texts, for a stage's inputs."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\n")
    return digest.hexdigest()[:16]


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE tokenizer; every text encodes without unknown tokens and decodes to itself.

    The end token doubles as the begin token, as in GPT-2, and is put before every text.

    Raises:
        InvalidConfig: fewer than 258 tokens.
    """
    if vocabulary < 258:
        raise InvalidConfig(
            message(
                "train_tokenizer.vocabulary",
                vocabulary,
                "256 bytes, end and padding must fit: at least 258",
                "Raise vocabulary",
            )
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    end = tokenizer.token_to_id(END)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{END} $A", pair=f"{END} $A $B", special_tokens=[(END, end)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        bos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def train_language_model(
    texts: Sequence[str],
    held_out: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    config: LanguageModelConfig,
    progress: bool = False,
) -> tuple[GPT2LMHeadModel, dict[str, float]]:
    """Fit a causal language model to whole tweets, each between two end tokens.

    Returns:
        The model (in eval mode) and its figures: loss on the held-out tweets in nats a token, tokens seen,
        tokens a second.

    Raises:
        NonFiniteState: the loss became NaN or infinite.
    """
    torch.manual_seed(config.seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own gelu_new, in one call instead of eight
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.to(device := _device())
    rows = encode(tokenizer, texts, config.context)
    held = encode(tokenizer, held_out, config.context)
    random = np.random.default_rng([config.seed, 1])
    optimizer, scheduler = _optimizer(model, config.learning_rate, config.steps)
    tokens, begin = 0, time.perf_counter()
    with _bar("language model", config.steps, progress) as advance:
        for index in _batches(rows, config.batch, config.steps, random):
            ids, mask = (t.to(device) for t in pad_rows([rows[i] for i in index], tokenizer.pad_token_id))
            loss = _lm_loss(model, ids, mask)
            _update(model, optimizer, scheduler, loss, "language model")
            tokens += int(mask.sum())
            advance(float(loss.detach()))
    seconds = time.perf_counter() - begin
    model.eval()
    with torch.no_grad():
        total = count = 0.0
        for start in range(0, len(held), 128):
            ids, mask = (t.to(device) for t in pad_rows(held[start : start + 128], tokenizer.pad_token_id))
            weight = float(mask[:, 1:].sum())
            total, count = total + float(_lm_loss(model, ids, mask)) * weight, count + weight
    return model, {
        "held_out_loss": total / count,
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds),
    }


def language_model_stage(
    cache: str | Path, language: LanguageModelConfig, texts: list[str], held: list[str], progress: bool
) -> CachedStage:
    """A tokenizer and a language model of these texts, trained unless the cache holds them; figures with the perplexity.

    Args:
        cache: cache folder.
        language: sizes and training.
        texts: learned from.
        held: the loss is measured on.
        progress: show a bar.
    """

    def make(folder: Path) -> dict[str, Any]:
        tokenizer = train_tokenizer(texts, language.vocabulary)
        model, figures = train_language_model(texts, held, tokenizer, language, progress)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return {**figures, "perplexity": math.exp(figures["held_out_loss"])}

    written = {"config": dataclasses.asdict(language), "texts": fingerprint(texts), "held": fingerprint(held)}
    return stage(cache, "language-model", written, make)


def train_classifier(
    texts: Sequence[str],
    labels: Sequence[int],
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerFast,
    config: ClassifierConfig,
    held_out: tuple[Sequence[str], Sequence[int]],
    start: str | Path | None = None,
    progress: bool = False,
) -> tuple[GPT2ForSequenceClassification, dict[str, Any]]:
    """Fit a classifier to labelled tweets; the class is read at the end token.

    Args:
        names: label names by index.
        held_out: texts and labels that are not among the first.
        start: folder of a causal language model to start from, or None for random weights.

    Returns:
        The classifier (in eval mode) and its figures: held-out accuracy, the majority class's share there,
        and recall by label.

    Raises:
        NonFiniteState: the loss became NaN or infinite.
    """
    torch.manual_seed(config.seed)
    label_maps = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    drop = config.dropout
    special = {
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id":
        tokenizer.pad_token_id,
    }  # fmt: skip
    if start is None:
        settings = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            num_labels=len(names),
            **label_maps,
            **special,
        )
        model = GPT2ForSequenceClassification(settings)
    else:
        model = _from_language_model(start, len(names), label_maps)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = drop
    rows = encode(tokenizer, texts, positions(model))
    model.to(device := _device())
    targets = torch.tensor(list(labels), device=device)
    steps = max(1, config.epochs * len(rows) // config.batch)
    random = np.random.default_rng([config.seed, 2])
    optimizer, scheduler = _optimizer(model, config.learning_rate, steps)
    model.train()
    with _bar("classifier", steps, progress) as advance:
        for index in _batches(rows, config.batch, steps, random):
            ids, mask = (t.to(device) for t in pad_rows([rows[i] for i in index], tokenizer.pad_token_id))
            logits = model(input_ids=ids, attention_mask=mask).logits
            loss = torch.nn.functional.cross_entropy(logits, targets[index])
            _update(model, optimizer, scheduler, loss, "classifier")
            advance(float(loss.detach()))
    model.eval().cpu()
    guess = torch.tensor(label_probabilities(model, tokenizer, held_out[0])).argmax(-1)
    truth = torch.tensor(list(held_out[1]))
    figures: dict[str, Any] = {
        "accuracy": float((guess == truth).double().mean()),
        "majority": float(torch.bincount(truth, minlength=len(names)).max() / len(truth)),
        "held_out": len(truth),
        "recall": {
            name: float((guess[truth == i] == i).double().mean())
            for i, name in enumerate(names)
            if (truth == i).any()
        },
    }
    return model, figures


# -- the small machinery -------------------------------------------------------------------------------------


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _batches(rows: Sequence[Any], size: int, steps: int, random: np.random.Generator) -> Iterator[list[int]]:
    """`steps` batches of indices: shuffled each pass, of like lengths in chunks of 50 batches, to save
    padding.
    """
    made = 0
    while made < steps:
        order = random.permutation(len(rows))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), 50 * size):
            chunk = sorted(order[start : start + 50 * size], key=lambda i: len(rows[i]))
            batches += [np.array(chunk[i : i + size]) for i in range(0, len(chunk), size)]
        for i in random.permutation(len(batches)):
            if made == steps:
                return
            made += 1
            yield batches[i].tolist()


def _lm_loss(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the next token, nats a token, padding left out."""
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    keep = mask[:, 1:].bool()
    return torch.nn.functional.cross_entropy(logits[keep], ids[:, 1:][keep])


def _optimizer(model: torch.nn.Module, rate: float, steps: int) -> tuple[Any, Any]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    warm = max(1, steps // 20)

    def factor(k: int) -> float:
        return min(1.0, (k + 1) / warm) * (
            0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * min(1.0, k / max(steps, 1))))
        )

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def _update(model: torch.nn.Module, optimizer: Any, scheduler: Any, loss: torch.Tensor, what: str) -> None:
    if not torch.isfinite(loss):
        raise NonFiniteState(
            message(
                f"training the {what}",
                f"a loss of {float(loss.detach())}",
                "the loss must be finite",
                "Lower its learning_rate",
            )
        )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()


def _from_language_model(folder: str | Path, labels: int, label_maps: dict[str, Any]) -> Any:
    """A sequence classifier whose body is the language model's and whose head is new."""
    source = load_language_model(folder)
    config = GPT2Config(
        **{**source.config.to_dict(), "num_labels": labels, **label_maps, "architectures": None}
    )
    model = GPT2ForSequenceClassification(config)
    model.transformer.load_state_dict(source.transformer.state_dict())
    return model


@contextlib.contextmanager
def _bar(title: str, total: int, show: bool) -> Iterator[Callable[[float], None]]:
    if not show:
        yield lambda loss: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda loss: bar.update(task, advance=1, description=f"{title}, loss {loss:.3f}")
