"""Completions: the record of them, the sampler that makes them and its decoders."""

from bilevel_rl.moved import names_of

__getattr__ = names_of("bilevel_rl.llm.sampling", "rollout", "sampler")  # this room was one module
