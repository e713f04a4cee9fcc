"""Selection: Batch -> Batch, a subset of its responses or with some added; decided once an iteration."""

from __future__ import annotations

from bilevel_rl.policy_gradient.select.informative import Informative
from bilevel_rl.policy_gradient.select.prompts import Budget, PromptCurriculum
from bilevel_rl.policy_gradient.select.replay import Replay
from bilevel_rl.policy_gradient.select.spread import MostVaried

ALL = (MostVaried, Informative, PromptCurriculum, Budget, Replay)
