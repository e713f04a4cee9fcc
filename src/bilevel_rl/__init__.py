"""Bi-level reinforcement learning: an upper level that shapes the reward, a lower level that answers optimally.

`bilevel_rl.finite` (JAX) holds finite MDPs, exact oracles and solvers; `bilevel_rl.llm` (Torch) fine-tunes language
models. Importing this package imports neither.
"""

from bilevel_rl import moved

__version__ = "0.2.0"

moved.install()
