"""Models and tokenizers from a folder or hub id, never with remote code, from safetensors only; texts as
padded ids.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm.forward import context

log = logging.getLogger(__name__)


def load_tokenizer(source: str | Path) -> Any:
    """A tokenizer.

    Raises:
        InvalidConfig: it can't be read.
    """
    return _load(AutoTokenizer, source)


def load_language_model(source: str | Path, **options: Any) -> Any:
    """A causal language model in eval mode.

    Raises:
        InvalidConfig: it can't be read, or has no safetensors.
    """
    return _load(AutoModelForCausalLM, source, use_safetensors=True, **options).eval()


def load_classifier(source: str | Path, **options: Any) -> Any:
    """A sequence classifier in eval mode.

    Raises:
        InvalidConfig: it can't be read, or has no safetensors.
    """
    return _load(AutoModelForSequenceClassification, source, use_safetensors=True, **options).eval()


def _load(kind: Any, source: str | Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(source), trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            message(
                str(source),
                f"{type(error).__name__} ({explain(error)})",
                f"{kind.__name__} reads a folder or hub id with safetensors, without remote code",
                "Check the path, or the network for a hub id",
            )
        ) from error


def explain(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def positions(model: Any) -> int:
    """Longest input of a model, in tokens; 512 where it names none."""
    return context(model) or 512


def encode(tokenizer: Any, texts: Sequence[str], context: int) -> list[list[int]]:
    """Token ids of texts, each between a begin and an end token, cut to `context` tokens in all."""
    if not len(texts):
        return []
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return [[begin, *ids[: context - 2], tokenizer.eos_token_id] for ids in rows]


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids [N, T] and their mask [N, T], which is made from lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()


def classifier_rows(
    tokenizer: Any, texts: Sequence[str], longest: int | None, begin: bool = True
) -> list[list[int]]:
    """Token ids of texts as a classifier reads them; what does not fit goes at the *beginning*, for a judge or reward
    model reads a prompt and, at its end, the answer that it grades.

    A tokenizer with its own begin and end (BERT's) is used as it is; one without gets a begin and an end token. Cut
    texts are counted in the log.

    Args:
        longest: tokens allowed, special ones included; None: any number.
        begin: False leaves the begin token to the tokenizer, as reward models are trained.

    Example:
        >>> class Letters:
        ...     cls_token_id, bos_token_id, eos_token_id = None, 0, 1
        ...     def __call__(self, texts, add_special_tokens):
        ...         return {"input_ids": [[ord(c) for c in text] for text in texts]}
        >>> classifier_rows(Letters(), ["abcde"], 5)
        [[0, 99, 100, 101, 1]]
    """
    if not len(texts):
        return []
    own = tokenizer.cls_token_id is not None
    rows = [list(row) for row in tokenizer(list(texts), add_special_tokens=own or not begin)["input_ids"]]
    if not own:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        rows = [_framed(row, first, tokenizer.eos_token_id, begin) for row in rows]
    if longest is None or all(len(row) <= longest for row in rows):
        return rows
    cut = sum(len(row) > longest for row in rows)
    log.warning(
        "%d of %d texts are longer than the classifier's %d tokens: their beginning is cut",
        cut,
        len(rows),
        longest,
    )
    return [row if len(row) <= longest else [row[0], *row[len(row) - longest + 1 :]] for row in rows]


def _framed(row: list[int], first: int, end: int | None, begin: bool) -> list[int]:
    """A row between one begin token (where asked) and one end token."""
    if row[:2] == [first, first]:  # a chat template that wrote the begin token, and a tokenizer that adds it
        row = row[1:]
    if begin and row[:1] != [first]:
        row = [first, *row]
    return row if end is None or (row and row[-1] == end) else [*row, end]


def label_scores(model: Any, tokenizer: Any, texts: Sequence[str], batch: int = 256) -> np.ndarray:
    """What a sequence classifier says of texts: probabilities of exclusive classes (softmax), of labels that can hold
    together (sigmoid, `problem_type: multi_label_classification`), or the logits themselves where there is one label or
    the model was trained to regress.

    Returns:
        [N, labels], float64.
    """
    logits = _logits(model, tokenizer, texts, batch)
    kind = getattr(model.config, "problem_type", None)
    if model.config.num_labels == 1 or kind == "regression":
        return logits.numpy()
    return (logits.sigmoid() if kind == "multi_label_classification" else logits.softmax(-1)).numpy()


def label_probabilities(model: Any, tokenizer: Any, texts: Sequence[str], batch: int = 256) -> np.ndarray:
    """Probabilities of a classifier's exclusive classes.

    Returns:
        [N, labels], float64; each row sums to 1.

    Raises:
        InvalidConfig: a model with one label, whose softmax would be 1 whatever the text.
    """
    if model.config.num_labels == 1:
        raise InvalidConfig(
            message("label_probabilities", "a model with one label", "probabilities need two classes or more",
                    "Use its score: label_scores")
        )  # fmt: skip
    return _logits(model, tokenizer, texts, batch).softmax(-1).numpy()


def _logits(model: Any, tokenizer: Any, texts: Sequence[str], batch: int) -> torch.Tensor:
    """[N, labels], float64, on the CPU."""
    device = next(model.parameters()).device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    rows = classifier_rows(tokenizer, texts, positions(model), begin=model.config.num_labels > 1)
    # like lengths together: padding costs more than the sort
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found = torch.zeros(len(rows), model.config.num_labels, dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            ids, mask = pad_rows([rows[i] for i in chosen], pad)
            found[chosen] = (
                model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.double().cpu()
            )
    return found
