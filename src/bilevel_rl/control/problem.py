"""The bi-level problem of a learning agent: an environment, what x pays for, and what the leader wants."""

# no `from __future__ import annotations`: Equinox reads `AbstractVar` only where annotations are evaluated
import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bilevel_rl import metrics as M
from bilevel_rl.control import drawing, nets, optimum
from bilevel_rl.control.environment import Environment, check_environment, check_spaces, random_action
from bilevel_rl.errors import InvalidProblem, NoFiniteValue, message
from bilevel_rl.loop import Problem
from bilevel_rl.loop.problem import Optimum, check_start


class Transition(eqx.Module):
    """One transition, as problems see it; the engine batches over these.

    Attributes:
        obs: [o] float32, before the action.
        action: [m] float32 in the action box, or an int32 scalar.
        next_obs: [o] float32, after it; of an episode that is over, its last observation.
        reward: the environment's own.
        info: [p] what the environment says besides.
        terminated: whether nothing comes after it.
    """

    obs: Float[Array, " o"]
    action: Array
    next_obs: Float[Array, " o"]
    reward: Float[Array, ""]
    info: Float[Array, " p"]
    terminated: Bool[Array, ""]


class ControlProblem(Problem):
    r"""Minimise $\Phi(x) = c(x) - E_{\pi^*(x)}\big[\sum_t \gamma_u^t\, u(x, s_t, a_t, s_{t+1})\big]$.

    $\pi^*(x)$ is the policy that an agent learns for the reward $r_x$.

    Set `environment` and `x0`, write `reward` and, where the environment's own reward is not what the leader wants,
    `utility`. All of them take one transition; the engine batches. What `features` returns is stored once and for all: the
    reward of an old transition follows x.

    Attributes:
        environment: where the follower acts.
        x0: [d] where x starts.

    Example:
        >>> class Shaped(ControlProblem):
        ...     environment: Environment
        ...     x0: Float[Array, " d"] = (0.0, 0.0)
        ...
        ...     def features(self, t):  # what x pays for, beside the environment's own reward
        ...         return jnp.stack([t.reward, t.next_obs[0], t.next_obs[2] ** 2])
        ...
        ...     def reward(self, x, features):
        ...         return features[0] + x @ features[1:]
    """

    environment: eqx.AbstractVar[Environment]

    kind: ClassVar[str] = "control"
    name: ClassVar[str] = "control_problem"
    # whether what `follower_at` says is a policy pi_x that answers x as the optimum under r_x would: estimators run
    tilts: ClassVar[bool] = False

    # -- what x pays for, and what the leader wants: one transition each -----------------------------------------------

    def features(self, t: Transition) -> Float[Array, " p"]:
        """What the reward is made of, [p] float32; by default what the environment says in `info`."""
        return t.info

    @abc.abstractmethod
    def reward(self, x: Float[Array, " d"], features: Float[Array, " p"]) -> Float[Array, ""]:
        """What the follower is paid for a transition with these features; differentiable in x."""

    def utility(self, x: Float[Array, " d"], t: Transition) -> Float[Array, ""]:
        """What the transition is worth to the leader; by default the environment's own reward."""
        return t.reward

    def cost(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """What x itself costs the leader."""
        return jnp.zeros(())

    def environment_at(self, x: Float[Array, " d"]) -> Environment:
        """The environment under x, where x moves more than rewards (a curriculum of starts); else `environment`.

        Estimators of the hyper-gradient differentiate rewards: on a problem that overrides this only the black-box
        solvers run.
        """
        return self.environment

    def follower_at(self, x: Float[Array, " d"], follower: Any, tau: Any) -> tuple[Any, Any]:
        """The learner and its temperature under x, where x sets these (pessimism, temperature); else as they are.

        As with `environment_at`, only the black-box solvers run on a problem that overrides this, but for one that `tilts`.

        Args:
            follower: of the solver, e.g. `followers.STAC`; return it by `dataclasses.replace`, numbers changed alone.
            tau: of the solver, in units of reward.
        """
        return follower, tau

    # -- two discounts ------------------------------------------------------------------------------------------------

    def discount_lower(self) -> float:
        """The follower's gamma: how far it plans."""
        return 0.99

    def discount_upper(self) -> float:
        """The leader's gamma; by default the follower's."""
        return self.discount_lower()

    def discount_factor(self) -> float:
        return float(self.discount_lower())

    def reward_scale(self) -> float:
        """The size of a step's reward: what temperatures are in units of."""
        return 1.0

    # -- what is known ------------------------------------------------------------------------------------------------

    def truth(self, x: Float[Array, " d"], tau: float) -> Float[Array, ""] | None:
        r"""The exact $\Phi_\tau(x)$ where there is one, traceable; None elsewhere. No solver sees it."""
        return None

    def known(self) -> bool:
        """Whether the exact answer is known."""
        return jax.eval_shape(lambda x: self.truth(x, 0.1), self.x0) is not None

    def best_known(self, tau: float) -> Optimum | None:
        """By descents of `truth`, where there is one."""
        def exact(x: Array) -> Array:
            value = self.truth(x, tau)
            assert value is not None, "asked where there is one"
            return value

        return optimum.best(exact, self.x0, self.box()) if self.known() else None

    def measures(self, solver: Any, state: Any, k, tau) -> tuple[dict[str, Array], Any]:
        """The exact objective where it is known, with its gradient's norm, and what the solver says of its followers."""
        said, path = (solver.said(self, state, k) if hasattr(solver, "said") else {}), self._path(solver, state, k)
        if not self.known():
            return said, path
        value, slope = jax.value_and_grad(lambda x: self.truth(x, tau))(state.x)
        return said | {M.OBJECTIVE.key: value, M.GRADIENT_NORM.key: jnp.linalg.norm(slope)}, path

    def _path(self, solver: Any, state: Any, k: Any) -> dict[str, Array]:
        """What the tracked follower does by its best actions, as frames to draw; nothing where none is tracked."""
        follower, F = getattr(solver, "follower", None), solver.tracked(self, state, k)
        if F is None or follower is None or self.environment.outside:
            return {}
        env = nets.narrow(self.environment)
        steps = min(env.horizon or drawing.STEPS, drawing.STEPS)
        learner = self.follower_at(jnp.asarray(state.x, jnp.float32), follower.on(env), 1.0)[0]
        return drawing.path(env, lambda obs: learner.mode(env, F, obs), jax.random.key(0), steps)

    def scene(self, x, found):
        return {f"path_{name}": frames for name, frames in (found or {}).items()}

    def valueless(self, x, overflow):
        if self.known() and not bool(jnp.isfinite(self.truth(jnp.asarray(x, float), self.temperature()))):
            return "the follower's problem has no finite value there: more is always better"
        box = self.box()
        if overflow and (box is None or not bool(jnp.all(jnp.isfinite(jnp.stack(box))))):
            return "x has no bounds, and numbers of the run grew beyond all of them: there may be no finite value"
        return None

    # -- before any work ----------------------------------------------------------------------------------------------

    def check(self, thorough: bool = True) -> None:
        """Raise `InvalidProblem` unless spaces, x0, discounts, shapes and the gradient in x are as they must be."""
        check_start(self)
        check_spaces(self.environment)
        for name in ("discount_lower", "discount_upper"):
            value = float(getattr(self, name)())
            if not 0 <= value < 1:
                raise InvalidProblem(message(f"{self.name}.{name}", value, "it must be in [0, 1)", "Change it"))
        example = jax.eval_shape(self.example, jax.random.key(0))
        self._check_scalar("reward", jax.eval_shape(lambda t, x: self.reward(x, self.features(t)), example, self.x0))
        self._check_scalar("utility", jax.eval_shape(lambda t, x: self.utility(x, t), example, self.x0))
        self._check_scalar("cost", jax.eval_shape(self.cost, self.x0))
        if thorough:
            check_environment(self.environment)
            said = self.valueless(self.x0, False)
            if said is not None:
                fix = "Start elsewhere, and bound x by a `box`"
                raise NoFiniteValue(message(f"{self.name}.x0", self.x0.tolist(), said, fix))
            example = self._tried() if self.environment.outside else self.example(jax.random.key(0))
            slope = jax.grad(lambda x: self.reward(x, self.features(example)))(self.x0)
            if not bool(jnp.all(jnp.isfinite(slope))):
                raise InvalidProblem(
                    message(f"{self.name}.reward", f"the gradient {slope.tolist()} at x0", "it must be finite",
                            "Look for roots, norms and logarithms of 0")
                )  # fmt: skip

    def _check_scalar(self, what: str, found: Any) -> None:
        if found.shape or not jnp.issubdtype(found.dtype, jnp.floating):
            raise InvalidProblem(
                message(f"{self.name}.{what}", f"{found.dtype}{list(found.shape)}", "it must be one float",
                        "Write it for one transition; the engine batches")
            )  # fmt: skip

    def _tried(self) -> Transition:
        obs, action, step = jax.tree.map(lambda v: v[0], self.environment.tried(1, 0))
        return Transition(obs, action, step.obs, step.reward, step.info, step.terminated)

    def example(self, key: Array) -> Transition:
        """A transition from a first state by a random action."""
        k_reset, k_act, k_step = jax.random.split(key, 3)
        state, obs = self.environment.reset(k_reset)
        action = random_action(self.environment.action, k_act)
        step = self.environment.step(state, action, k_step)
        return Transition(obs, action, step.obs, step.reward, step.info, step.terminated)

    def accept(self, solver: Any) -> None:
        self.environment.accept(solver, f"solver {solver.name} on {self.name}")
        moved = [name for name in ("environment_at", "follower_at")
                 if getattr(type(self), name) is not getattr(ControlProblem, name)]  # fmt: skip
        if self.tilts:
            moved.remove("follower_at")
            self._accept_tilt(solver)
        if moved and not getattr(solver, "black_box", False):
            what = "an environment that x moves" if moved[0] == "environment_at" else "a learner whose settings are x"
            raise InvalidProblem(
                message(f"solver {solver.name} on {self.name}", f"{what} (`{moved[0]}`)",
                        "estimators of the hyper-gradient differentiate rewards alone", "Take spsa or finite_difference")
            )  # fmt: skip

    def stepper(self):
        return self.environment.stepper()

    def draws_each(self, solver):
        if not self.environment.outside:
            return None
        self.accept(solver)
        return solver.rows_each()

    def _accept_tilt(self, solver: Any) -> None:
        """Raise unless a solver gets by with one policy, which is given and does not learn."""
        estimator = getattr(solver, "estimator", None)
        if getattr(solver, "black_box", False):
            return
        learns = "a second follower is" if estimator is None or estimator.other_chains else ""
        learns = "the follower's own next step is" if getattr(estimator, "scores", False) else learns
        if learns:
            raise InvalidProblem(
                message(f"solver {solver.name} on {self.name}", f"a policy that x gives, where {learns} to learn",
                        "nothing learns here", "Take tilted_pair, covariance, trajectory or spsa")
            )  # fmt: skip

    def described(self) -> tuple[str, str]:
        e, d = self.environment, self.x0.shape[0]
        numbers = lambda n: f"{n} number{'s' * (n > 1)}"  # noqa: E731
        acts = f"{e.action.n} actions" if hasattr(e.action, "n") else f"actions of {numbers(e.action.size)}"
        known = "with a known answer" if self.known() else "judged by what its followers do"
        return (
            f"{e.name}: observations of {numbers(e.observation.size)}, {acts}, discounts "
            f"{float(self.discount_lower()):g} (follower) and {float(self.discount_upper()):g} (leader), "
            f"{d} upper variable{'s' * (d > 1)}, {known}",
            "spaces, shapes, finite values and bounds along 50 random steps; the reward's derivative, at x0",
        )
