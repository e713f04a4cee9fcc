"""One self-contained HTML page from run folders: tables, learning curves, the grid in motion, language samples.

It reads run folders and nothing else: no engine is imported, no network is used.
"""

from bilevel_rl.report import page
from bilevel_rl.report.draw import plot
from bilevel_rl.report.page import build, export

__all__ = ["build", "export", "page", "plot"]
