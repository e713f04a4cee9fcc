"""Regularisers: Batch -> scalar, added to the loss with a coefficient."""

from __future__ import annotations

from bilevel_rl.policy_gradient.regularizers.covariance import CovarianceKL
from bilevel_rl.policy_gradient.regularizers.kl import Entropy, ExactKL, SampledKL
from bilevel_rl.policy_gradient.regularizers.predictive import PredictiveKL
from bilevel_rl.policy_gradient.regularizers.turn_entropy import TurnEntropy
from bilevel_rl.policy_gradient.regularizers.velocity import VelocityGap

ALL = (ExactKL, SampledKL, Entropy, TurnEntropy, CovarianceKL, PredictiveKL, VelocityGap)
