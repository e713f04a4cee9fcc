"""Notebooks from the pages of *Learn*: a page is the source, `python docs/hooks/notebooks.py` writes the notebook beside it.

Jupytext reads the page; links to other pages become text, since a notebook is opened alone.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jupytext

sys.path.insert(0, str(Path(__file__).parent))
from settings import repository

PAGES = ("tour", "designers")
INSTALL = "# once, on a machine without the library, such as Colab:\n# %pip install --quiet '{source}' matplotlib"


def notebook(root: Path, page: str) -> str:
    """The notebook of a page, as the text of its file."""
    words = (root / f"docs/learn/{page}.md").read_text()
    words = re.sub(r"!\[[^\]]*\]\([^)]*\)\n", "", words)  # the cell before draws it
    words = re.sub(r"\[([^\]]*)\]\((?!https?://)[^)]*\)", r"\1", words)
    address = repository(root)
    source = f"bilevel-rl[report] @ git+{address}" if address else ".[report]"  # the latter in a clone
    made = jupytext.reads(words, fmt="md")
    made.cells.insert(1, jupytext.reads(f"```python\n{INSTALL.format(source=source)}\n```", fmt="md").cells[0])
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{page}-{number}"  # the same page gives the same file
    made.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return json.dumps(made, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    here = Path(__file__).parents[2]
    for name in sys.argv[1:] or PAGES:
        (here / f"docs/learn/{name}.ipynb").write_text(notebook(here, name))
