"""`python -m bilevel_rl` is the command line."""

from __future__ import annotations

import sys

from bilevel_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
