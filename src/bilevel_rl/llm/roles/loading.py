"""Models and tokenizers from a folder or hub id, never with remote code, from safetensors only; texts as
padded ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bilevel_rl.errors import InvalidConfig, message


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
        reason = (str(error).strip().splitlines() or [""])[0]
        raise InvalidConfig(
            message(
                str(source),
                f"{type(error).__name__} ({reason})",
                f"{kind.__name__} reads a folder or hub id with safetensors, without remote code",
                "Check the path, or the network for a hub id",
            )
        ) from error


def positions(model: Any) -> int:
    """Longest input of a model, in tokens."""
    config = model.config
    return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 512))


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


def label_probabilities(model: Any, tokenizer: Any, texts: Sequence[str], batch: int = 256) -> np.ndarray:
    """Label probabilities of texts by a sequence classifier.

    A tokenizer with its own begin and end (BERT's) is used as it is; one without gets a begin and an end
    token.

    Returns:
        [N, labels], float64; each row sums to 1.
    """
    device = next(model.parameters()).device
    result: list[np.ndarray] = [np.zeros((0, model.config.num_labels))]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if tokenizer.cls_token_id is not None:
        rows = (
            tokenizer(list(texts), truncation=True, max_length=positions(model) - 2)["input_ids"]
            if len(texts)
            else []
        )
    else:
        rows = encode(tokenizer, texts, positions(model))
    # like lengths together: padding costs more than the sort
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with torch.no_grad():
        for start in range(0, len(rows), batch):
            ids, mask = pad_rows([rows[i] for i in order[start : start + batch]], pad)
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
            result.append(torch.softmax(logits.double(), -1).cpu().numpy())
    sorted_result = np.concatenate(result)
    back = np.empty_like(sorted_result)
    back[order] = sorted_result
    return back
