"""Regularisers: Batch -> scalar, added to the loss with a coefficient."""

from __future__ import annotations

from bilevel_rl.policy_gradient.regularizers.kl import Entropy, ExactKL, SampledKL

ALL = (ExactKL, SampledKL, Entropy)
