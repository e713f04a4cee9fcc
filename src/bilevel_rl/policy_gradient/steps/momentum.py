"""N-PG-IGT and HARPG: momentum without bias, from an extrapolated point or from a Hessian-vector product."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.segments import uniform_hash
from bilevel_rl.policy_gradient.steps.plain import Tensors, TensorsLike, norm
from bilevel_rl.schedules import PowerDecay

_SOURCE = "Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies"


@dataclasses.dataclass(frozen=True)
class ImplicitTransport:
    r"""Normalised policy gradient with implicit gradient transport (N-PG-IGT).

    $$\tilde\theta_t = \theta_t + \tfrac{1-\eta}{\eta}(\theta_t - \theta_{t-1}), \quad
      d_t = (1-\eta) d_{t-1} + \eta\, g(\tilde\theta_t), \quad
      \theta_{t+1} = \theta_t - \gamma_t \frac{d_t}{\|d_t\|}$$

    Sample at `query(state, parameters)`, take the gradient there, then call `step` with it. On a quadratic
    the momentum equals the gradient at $\theta_t$ exactly. One trajectory an iteration is enough; no
    importance weights, no Hessian.

    Args:
        rate: $\gamma_t$, the length of each step.
        eta: share of the new gradient, in (0, 1]; 1 is normalised SGD.
        normalised: divide by the norm; False steps by $\gamma_t d_t$.

    References:
        Stochastic Policy Gradient Methods: Improved Sample Complexity for Fisher-non-degenerate Policies.
        SEEN (a public policy-gradient library, constant eta = 0.9); schedules are INFERRED. Needs two more
        copies of the parameters.
    """

    rate: PowerDecay = PowerDecay(0.1, 0.5)
    eta: float = 0.9
    normalised: bool = True

    card: ClassVar[Card] = Card(
        name="n_pg_igt",
        slot=Slot.STEP,
        effect=Effect.KEEPS,
        scope=Scope.BATCH,
        source=_SOURCE,
        status=Status.SEEN,
        number=2,
        cost="O(parameters), two copies",
    )

    def __post_init__(self) -> None:
        _check_eta("ImplicitTransport", self.eta)

    def init(self, parameters: TensorsLike) -> Tensors:
        """Previous parameters, direction, and the number of steps taken."""
        state = {"k": torch.zeros((), dtype=torch.long)}
        for name, p in parameters.items():
            state[f"previous.{name}"] = p.detach().clone()
            state[f"direction.{name}"] = torch.zeros_like(p)
        return state

    def query(self, state: TensorsLike, parameters: TensorsLike) -> Tensors:
        """Where to sample and take the gradient: the extrapolated point."""
        factor = (1 - self.eta) / self.eta
        return {name: p + factor * (p - state[f"previous.{name}"]) for name, p in parameters.items()}

    def step(
        self, state: TensorsLike, parameters: TensorsLike, gradient: TensorsLike
    ) -> tuple[Tensors, Tensors]:
        """New parameters and state, from the gradient at the query point."""
        k = int(state["k"])
        share = 1.0 if k == 0 else self.eta  # there is no direction yet at the start
        direction = {
            name: (1 - share) * state[f"direction.{name}"] + share * gradient[name] for name in parameters
        }
        return _go(self.rate, self.normalised, k, parameters, direction)


@dataclasses.dataclass(frozen=True)
class HARPG:
    r"""Hessian-aided recursive policy gradient, normalised or not.

    $$d_t = (1-\eta)(d_{t-1} + v_t) + \eta\, g(\theta_t), \quad v_t = \nabla^2 \hat
    J(\hat\theta_t)(\theta_t - \theta_{t-1}),
      \quad \hat\theta_t = q\theta_t + (1-q)\theta_{t-1},\ q \sim U[0,1]$$

    $E_q$ of $v_t$ is the change of the gradient, so the momentum is unbiased. `between` gives
    $\hat\theta_t$ and the displacement; `hessian_vector` gives $v_t$ from a trajectory drawn there, with
    two automatic differentiations.

    Args:
        rate: $\gamma_t$.
        eta: share of the new gradient.
        normalised: divide by the norm.
        seed: of q.

    References:
        As `ImplicitTransport`. In the spirit of: INFERRED from the abstract (Hessian-aided recursion,
        two trajectories).
    """

    rate: PowerDecay = PowerDecay(0.1, 0.5)
    eta: float = 0.5
    normalised: bool = False
    seed: int = 0

    card: ClassVar[Card] = Card(
        name="harpg",
        slot=Slot.STEP,
        effect=Effect.KEEPS,
        scope=Scope.BATCH,
        source=_SOURCE,
        status=Status.INFERRED,
        number=2,
        cost="O(parameters), two copies, one more trajectory",
    )

    def __post_init__(self) -> None:
        _check_eta("HARPG", self.eta)

    def init(self, parameters: TensorsLike) -> Tensors:
        """Previous parameters, direction, and the number of steps taken."""
        return ImplicitTransport().init(parameters)

    def between(self, state: TensorsLike, parameters: TensorsLike) -> tuple[Tensors, Tensors]:
        """The random point between the last two iterates, and their difference."""
        q = float(uniform_hash(self.seed, int(state["k"])))
        change = {name: p - state[f"previous.{name}"] for name, p in parameters.items()}
        return {name: p - (1 - q) * change[name] for name, p in parameters.items()}, change

    def step(
        self, state: TensorsLike, parameters: TensorsLike, gradient: TensorsLike, correction: TensorsLike
    ) -> tuple[Tensors, Tensors]:
        """New parameters and state, from the gradient at the iterate and the correction $v_t$."""
        k = int(state["k"])
        share = 1.0 if k == 0 else self.eta
        direction = {
            name: (1 - share) * (state[f"direction.{name}"] + correction[name]) + share * gradient[name]
            for name in parameters
        }
        return _go(self.rate, self.normalised, k, parameters, direction)


def hessian_vector(
    surrogate: Callable[[TensorsLike], Tensor], log_likelihood: Callable[[TensorsLike], Tensor],
    at: TensorsLike, vector: TensorsLike,
) -> Tensors:  # fmt: skip
    r"""One-sample estimate of $\nabla^2 J\,u$: $\nabla\langle g, u\rangle + \langle g, u\rangle\,\nabla\log
    p(\tau)$.

    Args:
        surrogate: parameters -> scalar whose gradient is the estimator g on the trajectory, e.g.
            $\sum_t \log\pi(a_t|s_t)\,G_t$ (of what is maximised or of what is minimised, as you like).
        log_likelihood: parameters -> $\log p(\tau)$ up to a constant, $\sum_t\log\pi(a_t|s_t)$.
        at: where.
        vector: u.

    Returns:
        the estimate, in the shapes of the parameters; its mean over trajectories drawn at that point is
        exact.
    """
    names = list(at)
    points = {name: at[name].detach().requires_grad_() for name in names}
    leaves = [points[name] for name in names]
    g = torch.autograd.grad(surrogate(points), leaves, create_graph=True)
    along = torch.stack([(a * vector[name]).sum() for a, name in zip(g, names, strict=True)]).sum()
    first = torch.autograd.grad(along, leaves, allow_unused=True)
    score = torch.autograd.grad(log_likelihood(points), leaves)
    scale = along.detach()
    return {
        name: (torch.zeros_like(s) if f is None else f) + scale * s
        for name, f, s in zip(names, first, score, strict=True)
    }


def _check_eta(name: str, eta: float) -> None:
    if not 0 < eta <= 1:
        raise InvalidConfig(message(f"{name}.eta", eta, "it must be in (0, 1]", "Use eta=0.9"))


def _go(
    rate: PowerDecay, normalised: bool, k: int, parameters: TensorsLike, direction: TensorsLike
) -> tuple[Tensors, Tensors]:
    length = float(rate(k))
    size = float(norm(direction))
    scale = length if not normalised else length / size if size > 0 else 0.0
    new = {name: p - scale * direction[name] for name, p in parameters.items()}
    after: Tensors = {"k": torch.tensor(k + 1)}
    for name, p in parameters.items():
        after[f"previous.{name}"], after[f"direction.{name}"] = p.detach().clone(), direction[name]
    return new, after
