"""Makes the `finite_instances` of tests/finite importable here."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "finite"))
