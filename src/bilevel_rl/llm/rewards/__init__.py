"""Reward models x, and reward functions as TRL writes them."""

from bilevel_rl.moved import names_of

__getattr__ = names_of("bilevel_rl.llm.rewards", "models", "functions")  # this room was one module
