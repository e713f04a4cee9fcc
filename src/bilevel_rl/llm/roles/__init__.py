"""The roles of a run (policy, penalised follower, critics, reward) and the weights behind them."""

from bilevel_rl.moved import names_of

__getattr__ = names_of("bilevel_rl.llm.roles", "backend")  # this room was one module
