"""Flows and diffusion models in Torch, as an engine of `levels`: any velocity network, trained by the recipes of text."""

from bilevel_rl.flows.engine import FlowEngine, FlowRows
from bilevel_rl.flows.likelihoods import Likelihood, Matching, PathLikelihood
from bilevel_rl.flows.training import METHODS, train
from bilevel_rl.flows.two_levels import two_levels
from bilevel_rl.flows.velocities import PlaneVelocity, VelocityNetwork, diffusers_velocity

__all__ = [
    "METHODS", "FlowEngine", "FlowRows", "Likelihood", "Matching", "PathLikelihood", "PlaneVelocity", "VelocityNetwork",
    "diffusers_velocity", "train", "two_levels",
]  # fmt: skip
