"""Prompts, preferences and labelled texts: from a hub id, a file or a folder, checked before training starts.

Formats are TRL's, so a dataset that TRL takes is taken here:

    prompt-only   {"prompt": "The sky is"}                    {"prompt": [{"role": "user", "content": "..."}]}
    preference    {"prompt": ..., "chosen": ..., "rejected": ...}
                  {"chosen": ..., "rejected": ...}             (implicit prompt: what both begin with)

The right column, a list of messages, is the conversational format; the tokenizer's chat template renders it.
TweetEval folders (`train_text.txt`, `train_labels.txt`, `mapping.txt`) are read as labelled texts.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message, require
from bilevel_rl.llm.data.templates import apply, opened
from bilevel_rl.moved import renamed

__getattr__ = renamed("bilevel_rl.llm.data.sources", Preference="PreferenceText")

Row = dict[str, Any]
FILES = (".jsonl", ".json", ".csv", ".parquet", ".txt")


class PreferenceText(NamedTuple):
    """One stored comparison, rendered as text: `chosen` and `rejected` continue `prompt`."""

    prompt: str
    chosen: str
    rejected: str


class Labelled(NamedTuple):
    """Texts with a class each.

    Attributes:
        texts: one text an item.
        labels: index into `names`, one an item.
        names: label names by index.
    """

    texts: list[str]
    labels: list[int]
    names: list[str]


# -- rows, from anywhere -------------------------------------------------------------------------------------


def load_rows(source: str | os.PathLike[str], split: str = "train") -> list[Row]:
    """Read a dataset as a list of dictionaries.

    Args:
        source: a file (`.jsonl`, `.json`, `.csv`, `.parquet`, `.txt`), a folder (TweetEval text files, a
            dataset that `datasets` saved, or `SPLIT.jsonl` and the like), or a hub id (needs the extra
            `datasets`).
        split: which part of a folder or hub dataset.

    Raises:
        InvalidProblem: nothing there, nothing in it, or content that can't be read.
        MissingDependency: a hub id or Parquet file without the extra `datasets`.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "prompts.jsonl"
        >>> _ = file.write_text('{"prompt": "The sky is"}')
        >>> load_rows(file)
        [{'prompt': 'The sky is'}]
    """
    path = Path(source).expanduser()
    if path.is_file():
        rows = _file(path)
    elif path.is_dir():
        rows = _folder(path, split)
    elif path.suffix in FILES or str(source).startswith((".", "/", "~")):
        raise InvalidProblem(
            message(
                str(source),
                "no such file or folder",
                "a file, a folder or a hub id is needed",
                "Check the path",
            )
        )
    else:
        rows = _hub(str(source), split)
    if not rows:
        raise InvalidProblem(
            message(str(source), "no rows", "at least one row is needed", "Check the file's content")
        )
    return rows


def _file(path: Path) -> list[Row]:
    try:
        if path.suffix == ".txt":
            return [{"prompt": line} for line in _lines(path)]
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as file:
                return [
                    {key: _message_list(value) for key, value in row.items()} for row in csv.DictReader(file)
                ]
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in _lines(path) if line.strip()]
        elif path.suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".parquet":
            return require("pyarrow.parquet", "datasets").read_table(path).to_pylist()
        else:
            raise InvalidProblem(
                message(
                    str(path),
                    f"the ending {path.suffix!r}",
                    f"known endings are {', '.join(FILES)}",
                    "Convert the file, JSON lines are simplest",
                )
            )
    except (ValueError, OSError) as error:
        if isinstance(error, InvalidProblem):
            raise
        raise InvalidProblem(
            message(str(path), f"unreadable content ({error})", f"valid {path.suffix[1:]} in UTF-8 is needed",
                    "Correct the file")
        ) from error  # fmt: skip
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidProblem(
            message(
                str(path),
                "rows that are not objects",
                "each row must be an object with named columns",
                'Write rows like {"prompt": "..."}',
            )
        )
    return rows


def _folder(path: Path, split: str) -> list[Row]:
    if (path / f"{split}_text.txt").exists():
        if not (path / f"{split}_labels.txt").exists():
            return [{"text": text} for text in _lines(path / f"{split}_text.txt")]
        data = read_tweeteval(path, split)
        return [{"text": t, "label": data.names[i]} for t, i in zip(data.texts, data.labels, strict=True)]
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        loaded = require("datasets", "datasets").load_from_disk(str(path))
        if hasattr(loaded, "keys"):
            if split not in loaded:
                raise _no_split(str(path), split, loaded)
            loaded = loaded[split]
        return [dict(row) for row in loaded]
    found = sorted(file for file in path.iterdir() if file.suffix in FILES and file.stem == split)
    if not found:
        raise _no_split(str(path), split, [file.name for file in path.iterdir()])
    return _file(found[0])


def _hub(name: str, split: str) -> list[Row]:
    datasets = require("datasets", "datasets")
    try:
        return [dict(row) for row in datasets.load_dataset(name, split=split)]
    except Exception as error:
        raise InvalidProblem(
            message(f"dataset {name!r}", f"{type(error).__name__} ({str(error).partition(chr(10))[0]})",
                    "a local file or folder, or a hub dataset that can be reached, is needed",
                    "Check the name and the network, or download it and give its folder")
        ) from error  # fmt: skip


def _no_split(where: str, split: str, found: Iterable[str]) -> InvalidProblem:
    return InvalidProblem(
        message(
            where,
            f"no split {split!r}",
            f"it holds {sorted(found)}",
            f"Choose another split, or add {split}.jsonl",
        )
    )


def _lines(path: Path) -> list[str]:
    """Lines of a file; only a newline ends one (tweets hold other separators)."""
    text = path.read_text(encoding="utf-8")
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if text else []


def _message_list(value: Any) -> Any:
    """A CSV cell that holds a JSON list of messages, as that list; any other cell as it is."""
    if isinstance(value, str) and value.startswith("[{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


# -- labelled texts ------------------------------------------------------------------------------------------


def read_tweeteval(folder: str | os.PathLike[str], split: str = "train") -> Labelled:
    """Read `SPLIT_text.txt`, `SPLIT_labels.txt` and `mapping.txt`.

    Raises:
        InvalidProblem: a file is missing, texts and labels differ in number, or a label is not in the
        mapping.

    References:
        Barbieri et al., "TweetEval", Findings of EMNLP 2020.
    """
    folder = Path(folder)
    files = {name: folder / name for name in (f"{split}_text.txt", f"{split}_labels.txt", "mapping.txt")}
    for name, path in files.items():
        if not path.exists():
            raise InvalidProblem(
                message(
                    str(folder),
                    f"no {name}",
                    f"a TweetEval folder holds {', '.join(files)}",
                    "Labels missing: add the file, or choose another split",
                )
            )
    texts, raw, mapping = (_lines(path) for path in files.values())
    texts = [text.strip() for text in texts]
    if len(texts) != len(raw):
        raise InvalidProblem(
            message(
                f"{folder}/{split}",
                f"{len(texts)} texts and {len(raw)} labels",
                "each text needs one label",
                "Correct the files: line n of one belongs to line n of the other",
            )
        )
    names: dict[int, str] = {}
    for line in mapping:
        cells = line.rstrip("\t").split("\t")
        if line.strip():
            try:
                names[int(cells[0])] = cells[-1]
            except ValueError:
                cells = []
            if len(cells) < 2:
                raise InvalidProblem(
                    message(
                        f"{folder}/mapping.txt",
                        repr(line),
                        "a line is a number, a tab and a name",
                        "Correct the line",
                    )
                )
    if sorted(names) != list(range(len(names))):
        raise InvalidProblem(
            message(
                f"{folder}/mapping.txt",
                f"the numbers {sorted(names)}",
                "they must count up from 0",
                "Renumber",
            )
        )
    labels = []
    for i, cell in enumerate(raw):
        if not cell.strip().isdigit() or int(cell) not in names:
            raise InvalidProblem(
                message(
                    f"{folder}/{split}_labels.txt line {i + 1}",
                    repr(cell),
                    f"labels are 0 to {len(names) - 1}",
                    "Labels missing: correct the line",
                )
            )
        labels.append(int(cell))
    return Labelled(texts, labels, [names[i] for i in range(len(names))])


# -- prompts and preferences ---------------------------------------------------------------------------------


def load_prompts(
    source: str | os.PathLike[str] | Sequence[Any],
    split: str = "train",
    words: int = 0,
    duplicates: Literal["error", "drop"] = "error",
) -> list[Row]:
    """Prompt rows as the trainer takes them: `prompt` (a text, or a list of messages) and the row's other
    columns.

    Args:
        source: anything `load_rows` takes, or a list of texts, message lists or rows.
        split: which part of a folder or hub dataset.
        words: when above 0, a row without a prompt but with a `text` gives the text's first `words` words.
        duplicates: `"error"` refuses a prompt that comes twice, `"drop"` keeps its first.

    Raises:
        InvalidProblem: empty or duplicate prompts, no prompt column, or a prompt that is neither text nor
        messages.

    Example:
        >>> load_prompts(["The sky is", "My cat"])
        [{'prompt': 'The sky is'}, {'prompt': 'My cat'}]
    """
    where = str(source) if isinstance(source, (str, os.PathLike)) else "prompts"
    result: list[Row] = []
    for i, row in enumerate(load_rows(source, split) if isinstance(source, (str, os.PathLike)) else source):
        if not isinstance(row, Mapping):
            result.append({"prompt": row})
        elif "prompt" in row:
            result.append({k: v for k, v in row.items() if k not in ("chosen", "rejected", "completion")})
        elif words > 0 and isinstance(row.get("text"), str):
            result.append({**row, "prompt": " ".join(row["text"].split()[:words])})
        elif "messages" in row:
            others = {key: value for key, value in row.items() if key != "messages"}
            asked = list(itertools.takewhile(lambda m: m.get("role") != "assistant", row["messages"]))
            result.append({**others, "prompt": asked})
        elif "text" in row:
            raise InvalidProblem(
                message(
                    f"{where}[{i}]",
                    "a text and no prompt",
                    "a prompt-only row has the column 'prompt'",
                    "Rename the column, or pass words=N to prompt with the first N words",
                )
            )
        else:
            raise _no_column(where, i, row, "prompt")
    if duplicates == "drop":
        result = list({_key(row["prompt"]): row for row in reversed(result)}.values())[::-1]
    check_prompts(result, where=where)
    return result


def preference_rows(source: str | os.PathLike[str] | Sequence[Any], split: str = "train") -> list[Row]:
    """Stored comparisons as the trainer takes them: `prompt`, `chosen`, `rejected`, as texts or as lists of
    messages.

    Args:
        source: anything `load_rows` takes, or a list of rows or `PreferenceText`. A row without `prompt` has an
            implicit one: what chosen and rejected both begin with.

    Raises:
        InvalidProblem: columns missing, an empty completion, or chosen equal to rejected.

    Example:
        >>> preference_rows([{"chosen": "my cat purrs", "rejected": "my cat hisses"}])
        [{'prompt': 'my cat', 'chosen': ' purrs', 'rejected': ' hisses'}]
    """
    where = str(source) if isinstance(source, (str, os.PathLike)) else "preferences"
    result = []
    for i, row in enumerate(load_rows(source, split) if isinstance(source, (str, os.PathLike)) else source):
        row = row._asdict() if isinstance(row, PreferenceText) else row
        for name in ("chosen", "rejected"):
            if name not in row:
                raise _no_column(where, i, row, name)
        prompt, chosen, rejected = _split(row)
        _check_kind(prompt, f"{where}[{i}]")
        empty = not as_text(chosen).strip() or not as_text(rejected).strip()
        if empty or chosen == rejected:
            what = "chosen equal to rejected" if chosen == rejected else "an empty completion"
            raise InvalidProblem(
                message(
                    f"{where}[{i}]", what, "a comparison needs two different completions", "Remove the row"
                )
            )
        result.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    if not result:
        raise InvalidProblem(
            message(where, "no rows", "at least one comparison is needed", "Check the source")
        )
    return result


def load_preferences(
    source: str | os.PathLike[str] | Sequence[Any], tokenizer: Any = None, split: str = "train"
) -> list[PreferenceText]:
    """Stored comparisons as texts, messages rendered by the tokenizer's chat template.

    Args:
        source: as for `preference_rows`.
        tokenizer: needed for conversational rows only.

    Raises:
        InvalidProblem: as `preference_rows`; messages with a chat template that rewrites the
        prompt.

    Example:
        >>> load_preferences([{"prompt": "My cat", "chosen": " purrs", "rejected": " hisses"}])
        [PreferenceText(prompt='My cat', chosen=' purrs', rejected=' hisses')]
    """
    rows = preference_rows(source, split)
    return [_rendered(row, tokenizer, f"preferences[{i}]") for i, row in enumerate(rows)]


def _split(row: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected of a row; an implicit prompt is taken off both."""
    chosen, rejected = row["chosen"], row["rejected"]
    if "prompt" in row:
        return row["prompt"], chosen, rejected
    if isinstance(chosen, str):
        shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 (texts, not paths)
        shared = shared[: max(shared.rfind(" "), 0)]  # break before a word, where tokens break too
        return shared, chosen[len(shared) :], rejected[len(shared) :]
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))
    prompt = [first for first, _ in both]
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]


def _rendered(row: Row, tokenizer: Any, where: str) -> PreferenceText:
    prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
    start = render(prompt, tokenizer, where)
    if isinstance(chosen, str):
        return PreferenceText(start, chosen, rejected)
    ends = [apply(tokenizer, [*prompt, *end], where, tokenize=False) for end in (chosen, rejected)]
    for end in ends:
        if not end.startswith(start):
            raise InvalidProblem(
                message(where, "a chat template whose prompt is not the start of the conversation",
                        "prompt + completion must be what the template renders whole",
                        "Use a template that only appends")
            )  # fmt: skip
    return PreferenceText(start, ends[0][len(start) :], ends[1][len(start) :])


def render(prompt: Any, tokenizer: Any, where: str = "prompt") -> str:
    """A prompt as text: a string as it is, a list of messages through the tokenizer's chat template.

    Raises:
        InvalidProblem: neither.
        InvalidConfig: messages without a chat template.
    """
    _check_kind(prompt, where)
    if isinstance(prompt, str):
        return prompt
    return opened(tokenizer, prompt, where)


def whole(prompt: Any, completion: Any, tokenizer: Any) -> str:
    """Prompt and completion as one text for another model's tokenizer: texts joined, messages through its template.

    Without a template the contents stand as they are, the completion right after the prompt: what it says of messages is
    what it says of their texts.
    """
    if isinstance(prompt, str):
        return prompt + as_text(completion)
    messages = [*prompt, *completion] if not isinstance(completion, str) else [
        *prompt, {"role": "assistant", "content": completion}
    ]  # fmt: skip
    if getattr(tokenizer, "chat_template", None):
        return apply(tokenizer, messages, "reward", tokenize=False)
    return as_text(prompt) + as_text(completion)


def as_text(value: Any) -> str:
    """A prompt or completion for a reader (a classifier, a person): a text as it is, messages as their
    contents.
    """
    return value if isinstance(value, str) else "\n".join(str(part["content"]) for part in value)


def _check_kind(prompt: Any, where: str) -> None:
    if isinstance(prompt, str):
        return
    messages = list(prompt) if isinstance(prompt, Sequence) else []
    if not messages or not all(isinstance(m, Mapping) and {"role", "content"} <= m.keys() for m in messages):
        raise InvalidProblem(
            message(
                where,
                f"a prompt of type {type(prompt).__name__}",
                "a prompt is a text or a list of messages with role and content",
                "Correct the row",
            )
        )


def _key(prompt: Any) -> str:
    return json.dumps(prompt, sort_keys=True, default=str)


def _no_column(where: str, i: int, row: Mapping[str, Any], name: str) -> InvalidProblem:
    return InvalidProblem(
        message(
            f"{where}[{i}]",
            f"the columns {sorted(row)}",
            f"the column {name!r} is needed (TRL's names)",
            f"Rename the column that holds the {name}",
        )
    )


# -- checks before training ----------------------------------------------------------------------------------


def check_prompts(
    prompts: Sequence[Any],
    tokenizer: Any = None,
    max_prompt_tokens: int | None = None,
    context: int | None = None,
    max_new_tokens: int = 0,
    where: str = "prompts",
) -> None:
    """Raise unless prompts are non-empty, distinct, and leave room to write.

    Args:
        prompts: rows with `prompt`, texts, or message lists.
        tokenizer: needed for the two length checks.
        max_prompt_tokens: longest prompt allowed, in tokens.
        context: positions of the model; prompt and `max_new_tokens` must fit.

    Raises:
        InvalidProblem: naming the first prompt that fails.
    """
    if not len(prompts):
        raise InvalidProblem(
            message(where, "no prompts", "at least one prompt is needed", "Check the source")
        )
    seen: dict[str, int] = {}
    for i, row in enumerate(prompts):
        prompt = row["prompt"] if isinstance(row, Mapping) else row
        _check_kind(prompt, f"{where}[{i}]")
        if not as_text(prompt).strip():
            raise InvalidProblem(
                message(f"{where}[{i}]", "an empty prompt", "a prompt needs text", "Remove the row")
            )
        if (key := _key(prompt)) in seen:
            raise InvalidProblem(
                message(
                    f"{where}[{i}]",
                    f"the same prompt as {where}[{seen[key]}], {as_text(prompt)[:40]!r}",
                    "prompts must be distinct",
                    'Remove it, or load with duplicates="drop"',
                )
            )
        seen[key] = i
        if tokenizer is None:
            continue
        length = len(tokenizer(render(prompt, tokenizer, f"{where}[{i}]"))["input_ids"])
        if max_prompt_tokens is not None and length > max_prompt_tokens:
            raise InvalidProblem(
                message(
                    f"{where}[{i}]",
                    f"{length} tokens",
                    f"max_prompt_tokens is {max_prompt_tokens}",
                    "Shorten or remove the prompt, or raise max_prompt_tokens",
                )
            )
        if context is not None and length + max_new_tokens > context:
            raise InvalidProblem(
                message(
                    f"{where}[{i}]",
                    f"{length} tokens and {max_new_tokens} new ones",
                    f"the model's context is {context}",
                    "Shorten the prompt or lower max_new_tokens",
                )
            )


def check_tokenizer(tokenizer: Any, vocabulary: int | None = None) -> None:
    """Raise unless the tokenizer can end a text and fits the model.

    Args:
        vocabulary: rows of the model's embedding; None leaves that check out.

    Raises:
        InvalidConfig: no end token, or more tokens than the model has embeddings.
    """
    if tokenizer.eos_token_id is None:
        raise InvalidConfig(
            message(
                "tokenizer", "no EOS token", "an episode ends at EOS", 'Set tokenizer.eos_token, e.g. "</s>"'
            )
        )
    if vocabulary is not None and len(tokenizer) > vocabulary:
        raise InvalidConfig(
            message(
                "tokenizer",
                f"{len(tokenizer)} tokens",
                f"the model embeds {vocabulary}: a vocabulary mismatch",
                "Use the model's own tokenizer, or model.resize_token_embeddings(len(tokenizer))",
            )
        )
