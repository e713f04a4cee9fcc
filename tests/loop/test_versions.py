"""A checkpoint of another version is refused by the names of both."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bilevel_rl import __version__, records
from bilevel_rl.errors import RunNotFound
from bilevel_rl.loop import checkpoint


def checkpoint_of(folder, version):
    records.write_json(folder / "run.json", {"provenance": {"versions": {"bilevel-rl": version}}})
    records.write_arrays(folder / checkpoint.FILE, {"meta": np.array(json.dumps({"fingerprint": "of then"}))})
    return folder / checkpoint.FILE


def test_a_checkpoint_of_another_version_names_both(tmp_path):
    with pytest.raises(RunNotFound, match=rf"bilevel-rl 0\.1\.0 wrote; this is {__version__}"):
        checkpoint.read(checkpoint_of(tmp_path, "0.1.0"), "of now", "run")


@pytest.mark.parametrize("version", [__version__, None, ["0.1.0"]])
def test_other_differences_are_not_blamed_on_the_version(tmp_path, version):
    with pytest.raises(RunNotFound, match="another problem, solver, seed or schedule"):
        checkpoint.read(checkpoint_of(tmp_path, version), "of now", "run")


def test_the_same_fingerprint_is_read_whatever_the_version(tmp_path):
    _, notes = checkpoint.read(checkpoint_of(tmp_path, "0.1.0"), "of then", "run")
    assert notes["fingerprint"] == "of then"


def test_what_wrote_a_folder(tmp_path):
    assert records.written_by(tmp_path) == ""
    assert records.provenance("a command")["versions"]["bilevel-rl"] == __version__
