"""Steps: gradient -> update of the parameters, as frozen hyper-parameters with `init` and `step`.

Parameters, gradients and state are mappings from names to tensors, ready for safetensors; the gradient is
that of what is *minimised*, so every step goes against it.
"""

from __future__ import annotations

from bilevel_rl.policy_gradient.steps.momentum import HARPG, ImplicitTransport
from bilevel_rl.policy_gradient.steps.plain import SGD, Adam
from bilevel_rl.policy_gradient.steps.signal_to_noise import SignalToNoise

ALL = (SGD, Adam, ImplicitTransport, HARPG, SignalToNoise)
