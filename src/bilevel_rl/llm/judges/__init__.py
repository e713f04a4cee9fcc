"""Judges of pairs, by name, and how they are asked."""

from bilevel_rl.moved import names_of

__getattr__ = names_of("bilevel_rl.llm.judges", "builtin")  # this room was one module
