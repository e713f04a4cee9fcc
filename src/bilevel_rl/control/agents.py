r"""One's own agent as the follower: a black box that learns in a Gymnasium environment and is asked what it does.

x descends differences of what the leader gets from agents that learnt under points around it:

$$g = \frac{\hat\Phi(x + \delta\Delta) - \hat\Phi(x - \delta\Delta)}{2\delta}\,\Delta$$

with random signs $\Delta$ (`spsa`), along each axis (`finite_difference`), or with random signs and agents that begin from
nothing at every point (`nested`). What an agent learnt is never differentiated.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import gymnasium
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.control.scoring import policy_from_sb3, score
from bilevel_rl.control.wrappers import AsGymnasium, RewardWrapper
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.schedules import PowerDecay

METHODS = ("spsa", "finite_difference", "nested")


@runtime_checkable
class Agent(Protocol):
    """Whatever learns and acts."""

    def learn(self, environment: gymnasium.Env, steps: int, seed: int) -> None:
        """Go on learning in the environment, for so many of its steps."""

    def act(self, obs: np.ndarray) -> Any:
        """The action in one state, as the environment takes it."""


class StableBaselines3Agent:
    """A model of Stable-Baselines3, which goes on learning under every new x.

    Args:
        make: (environment, seed) -> a model, e.g. `lambda env, seed: SAC("MlpPolicy", env, seed=seed)`.
        deterministic: whether it acts greedily when it is scored.
    """

    def __init__(self, make: Callable[[gymnasium.Env, int], Any], deterministic: bool = True):
        self.make, self.deterministic, self.model = make, deterministic, None

    def learn(self, environment: gymnasium.Env, steps: int, seed: int) -> None:
        """`model.learn`, on from where it was; its replay keeps the rewards that it was paid at the time."""
        if self.model is None:
            self.model = self.make(environment, seed)
        else:
            self.model.set_env(environment)
        self.model.learn(total_timesteps=steps, reset_num_timesteps=False)

    def act(self, obs: np.ndarray) -> Any:
        """`model.predict`."""
        assert self.model is not None
        return policy_from_sb3(self.model, self.deterministic)(obs)


class ScriptAgent:
    """A training script in the manner of CleanRL: one function that makes an environment into a policy.

    Args:
        train: (environment, steps, seed) -> a function from an observation to an action.
    """

    def __init__(self, train: Callable[[gymnasium.Env, int, int], Callable[[np.ndarray], Any]]):
        self.train, self.policy = train, None

    def learn(self, environment: gymnasium.Env, steps: int, seed: int) -> None:
        """Run the script; it begins from nothing every time."""
        self.policy = self.train(environment, steps, seed)

    def act(self, obs: np.ndarray) -> Any:
        """What the policy says."""
        assert self.policy is not None
        return self.policy(obs)


@dataclasses.dataclass(frozen=True)
class Descent:
    """What a descent did.

    Attributes:
        x: [k + 1, d] from x0 on.
        outcome: [k] what the leader got on average from the agents around each x, discounted, its cost taken off.
        transitions: [k] steps of all agents so far, those in which they were scored included.
    """

    x: np.ndarray
    outcome: np.ndarray
    transitions: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """[d] the x around which the leader got most."""
        return self.x[int(np.argmax(self.outcome))]


def descend(
    problem: ControlProblem, agent: Callable[[], Agent], environment: Callable[[], gymnasium.Env] | None = None, *,
    method: str = "spsa", iterations: int = 20, steps: int = 2000, episodes: int = 5, x0: Any = None,
    zeta: PowerDecay = PowerDecay(1.0, 0.602), radius: PowerDecay = PowerDecay(0.5, 0.101), clip: float = 1.0, seed: int = 0,
) -> Descent:  # fmt: skip
    """Move x so that the leader gets more from one's own agents.

    Args:
        problem: says what x pays and what the leader wants.
        agent: makes an agent; one for each point around x.
        environment: makes a Gymnasium environment; the problem's own when None.
        method: `"spsa"`, `"finite_difference"` or `"nested"`.
        iterations: moves of x.
        steps: that an agent learns for at each of its points.
        episodes: in which it is then scored.
        x0: [d]; the problem's when None.
        zeta: step of x.
        radius: distance of the points, in units of x.
        clip: bound on the length of a slope.
        seed: of everything but what agents keep to themselves.

    Raises:
        InvalidConfig: a method that would differentiate the agent.
        NonFiniteState: an outcome that is not a number.
    """
    if method not in METHODS:
        raise InvalidConfig(
            message("agents.descend.method", repr(method), f"an agent of one's own is a black box: {', '.join(METHODS)}",
                    "Estimators that need the policy's gradient take followers of bilevel_rl.control.followers")
        )  # fmt: skip
    made = environment or (lambda: AsGymnasium(problem.environment))
    rng, x = np.random.default_rng(seed), np.asarray(problem.x0 if x0 is None else x0, float)
    pairs = len(x) if method == "finite_difference" else 1
    agents = [agent() for _ in range(2 * pairs)]
    xs, outcomes, transitions, used = [x], [], [], 0
    for k in range(iterations):
        directions = np.eye(len(x)) if method == "finite_difference" else rng.choice([-1.0, 1.0], (1, len(x)))
        if method == "nested":
            agents = [agent() for _ in agents]
        delta, values, points = radius(k), [], []
        for i, side in enumerate(s * d for d in directions for s in (1, -1)):
            point = _projected(problem, x + delta * side)
            value, taken = _outcome(problem, agents[i], made, point, steps, episodes, seed + 1000 * k)
            values.append(value)
            points.append(point)
            used += taken
        ahead, behind = (np.array(values[i::2]) for i in (0, 1))
        moved = (np.array(points[0::2]) - np.array(points[1::2])) / 2  # what the set of x leaves of each direction
        g = ((ahead - behind) / 2 / delta**2) @ moved
        g *= min(1.0, clip / max(np.linalg.norm(g), 1e-30))
        x = _projected(problem, x + zeta(k) * g)
        xs.append(x)
        outcomes.append(np.mean(values))
        transitions.append(used)
    return Descent(np.array(xs), np.array(outcomes), np.array(transitions))


def _projected(problem: ControlProblem, x: np.ndarray) -> np.ndarray:
    return np.asarray(problem.project(jnp.asarray(x)), float)


def _outcome(problem: Any, agent: Agent, made: Callable, x: np.ndarray, steps: int, episodes: int, seed: int):
    """What the leader gets from an agent that has learnt at x; and the steps that this took."""
    env = RewardWrapper(made(), problem, x)
    agent.learn(env, steps, seed)
    env.close()
    found = score(problem, agent.act, x, made, episodes=episodes, seed=seed)
    return float(np.mean(found.leader)), steps + found.steps
