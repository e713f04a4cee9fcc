"""One environment, watched where it runs: what would break a batch of them is named here, with its own error."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from bilevel_rl.errors import message
from bilevel_rl.host import spaces
from bilevel_rl.host.faults import (
    EnvironmentCrashed,
    EnvironmentFault,
    ObservationOutsideSpace,
    RewardOfWrongShape,
    SpacesChanged,
)


class Guarded(gymnasium.Wrapper):
    """Shapes, kinds and spaces of one environment, looked at in every step and at every reset.

    Args:
        env: the environment.
        where: its name in errors.

    Raises:
        UnsupportedSpace: at once.
    """

    def __init__(self, env: gymnasium.Env, where: str):
        super().__init__(env)
        self.where = where
        spaces.supported(env.observation_space, env.action_space, where)
        self._began = (env.observation_space, env.action_space)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """As Gymnasium's.

        Raises:
            SpacesChanged: spaces that are not those of the beginning.
            EnvironmentCrashed: whatever the environment raises.
        """
        try:
            observation, info = self.env.reset(seed=seed, options=options)
        except EnvironmentFault:
            raise
        except Exception as error:
            raise self._crashed("reset", error) from error
        if (self.env.observation_space, self.env.action_space) != self._began:
            raise SpacesChanged(
                message(self.where, f"{self.env.observation_space} and {self.env.action_space}",
                        f"it began with {self._began[0]} and {self._began[1]}", "Keep the spaces for the whole run")
            )  # fmt: skip
        return self._looked_at(observation), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """As Gymnasium's.

        Raises:
            EnvironmentCrashed, ObservationOutsideSpace, RewardOfWrongShape: as their names say.
        """
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
        except EnvironmentFault:
            raise
        except Exception as error:
            raise self._crashed("step", error) from error
        said: tuple[tuple[str, Any], ...] = (("reward", reward), ("terminated", terminated), ("truncated", truncated))
        for word, value in said:
            if np.ndim(value) or np.asarray(value).dtype.kind not in "biuf":
                raise RewardOfWrongShape(
                    message(f"{self.where}.step", f"{word} = {value!r}", f"{word} is one number", "Return a scalar")
                )
        return self._looked_at(observation), float(reward), bool(terminated), bool(truncated), info

    def _looked_at(self, observation: Any) -> Any:
        shape = self._began[0].shape or ()
        if np.shape(observation) != shape:
            raise ObservationOutsideSpace(
                message(self.where, f"an observation of shape {np.shape(observation)}", f"its space says {shape}",
                        "Return what the space promises")
            )  # fmt: skip
        return observation

    def _crashed(self, verb: str, error: Exception) -> EnvironmentCrashed:
        return EnvironmentCrashed(
            message(f"{self.where}.{verb}", f"{type(error).__name__}: {error}", "an environment must not raise",
                    "Mend it; the last good step is kept")
        )  # fmt: skip
