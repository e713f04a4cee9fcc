"""Rows and labelled texts from a hub id, a file or a folder.

TweetEval folders (`train_text.txt`, `train_labels.txt`, `mapping.txt`) are read as labelled texts.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bilevel_rl.errors import InvalidProblem, message, require
from bilevel_rl.moved import names_of

__getattr__ = names_of("bilevel_rl.llm.data", "rows", "wording")  # which were here

Row = dict[str, Any]
FILES = (".jsonl", ".json", ".csv", ".parquet", ".txt")


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
