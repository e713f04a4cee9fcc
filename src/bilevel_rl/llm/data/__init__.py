"""Where texts come from: prompts, pairs and columns of files."""

from bilevel_rl.moved import names_of

__getattr__ = names_of("bilevel_rl.llm.data", "sources", "rows", "wording")  # this room was one module
