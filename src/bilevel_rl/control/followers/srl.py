r"""Sequence reinforcement learning: an actor that plans several actions from one look, taught through a model.

$$\hat s_0 = s, \quad \hat s_{p+1} = \bar f(\hat s_p, a_p), \qquad
L = E \sum_{p<j} \big(\tau \log\pi(a_p | s, a_{<p}) - \min_i Q_i(\hat s_p, a_p)\big)$$

The critic is SAC's, on single steps. The model is needed while it learns, not while it acts.
"""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments.open_loop import OpenLoop
from bilevel_rl.control.followers.follower import ongoing, scaled
from bilevel_rl.control.followers.sac import SAC, Learnt
from bilevel_rl.loop.settings import check_fields


class Planner(eqx.Module):
    """A recurrent actor: what a state says, what each action adds, and the law's outputs.

    Attributes:
        start: state [o] -> memory [w].
        gates: action and memory [m + w] -> reset and update [2w].
        mixed: action and memory that was reset [m + w] -> candidate [w].
        head: memory [w] -> outputs [q].
    """

    start: nets.MLP
    gates: nets.MLP
    mixed: nets.MLP
    head: nets.MLP

    def step(self, memory: Float[Array, "*B w"], action: Float[Array, "*B m"]) -> Float[Array, "*B w"]:
        """The gated recurrent unit: $h' = (1 - z) \\tanh(W[a, r h]) + z h$."""
        r, z = jnp.split(jax.nn.sigmoid(self.gates(jnp.concatenate([action, memory], -1))), 2, -1)
        fresh = jnp.tanh(self.mixed(jnp.concatenate([action, r * memory], -1)))
        return (1 - z) * fresh + z * memory


class Model(eqx.Module):
    """What it believes of the environment, in scaled observations.

    Attributes:
        online: a network of the change [o + m] -> [o], with Adam's memory.
        target: a slow copy, through which actors are taught.
    """

    online: nets.Trained
    target: nets.MLP


class SRL(SAC):
    """SAC with a sequence actor; in `OpenLoop` environments it acts without looking, elsewhere by its first action alone.

    Args:
        rate: step size of Adam, for actor, critics and model.
        polyak: share by which targets follow after an update.
        entropy: what a tuned temperature aims at, in nats a coordinate of the action.
        width: units of each hidden layer, and of the memory.
        critics: 1, or 2 whose smaller value counts; 0 as SAC has it.
        unit: value that an output of 1 of a critic's network stands for; 0 as SAC has it.
        tuned: whether the temperature is tuned.
        length: j, actions that it learns to plan; with 1 the actor's loss is SAC's.

    References:
        Patel, Siegelmann 2024, arXiv 2410.08979; losses and targets as in dee0512/Sequence-Reinforcement-Learning. The model
        predicts changes (ours).
    """

    length: int = eqx.field(static=True, default=4)

    name: ClassVar[str] = "srl"
    references: ClassVar[tuple[str, ...]] = ("patel2024srl", "haarnoja2018sac")

    def check(self, environment: Environment) -> None:
        super().check(environment)
        check_fields("follower srl", ("length", self.length, self.length >= 1, "it must be at least 1"))

    # -- networks ------------------------------------------------------------------------------------------------------

    def init(self, environment: Environment, key: Array) -> Learnt:
        F, o = super().init(environment, key), _inner(environment).observation.size
        net = nets.MLP.make((o + environment.action.size, self.width, self.width, o), jax.random.fold_in(key, 1), last=0.1)
        return eqx.tree_at(lambda f: f.more, F, Model(nets.Trained.begin(net), net), is_leaf=lambda v: v is None)

    def actor(self, environment, key):
        o, m, w = _inner(environment).observation.size, environment.action.size, self.width
        k_start, k_gates, k_mixed, k_head = jax.random.split(key, 4)
        return Planner(
            nets.MLP.make((o, w, w), k_start), nets.MLP.make((m + w, 2 * w), k_gates), nets.MLP.make((m + w, w), k_mixed),
            nets.MLP.make((w, self.law(environment).outputs), k_head, last=0.1),
        )  # fmt: skip

    def critic(self, environment, key):
        o, m, w = _inner(environment).observation.size, environment.action.size, self.width
        return nets.MLP.make((o + m, w, w, 1), key, last=1 / (self.unit or 1.0))

    # -- acting: the sequence up to its place, from what was seen -------------------------------------------------------

    def outputs(self, environment, actor, obs):
        inner = _inner(environment)
        if inner is environment:
            return actor.head(self._begun(actor, scaled(environment, obs), environment.action.size))
        seen, past, place = environment.opened(obs)
        memory = self._begun(actor, scaled(inner, seen), inner.action.size)
        found = [actor.head(memory)]
        for p in range(environment.length - 1):
            memory = actor.step(memory, past[..., p, :])
            found.append(actor.head(memory))
        return jnp.einsum("...p,p...q->...q", place, jnp.stack(found))

    def _begun(self, actor: Planner, seen: Float[Array, "*B o"], m: int) -> Float[Array, "*B w"]:
        """The memory before the first action: no action came before it."""
        return actor.step(actor.start(seen), jnp.zeros((*seen.shape[:-1], m), jnp.float32))

    # -- learning ------------------------------------------------------------------------------------------------------

    def seen(self, environment, rows):
        inner = _inner(environment)
        if inner is environment:
            return super().seen(environment, rows)
        o = inner.observation.size
        return scaled(inner, rows.t.info[:, :o]), scaled(inner, rows.t.info[:, o : 2 * o])

    def target(self, environment, F, rows, r, gamma, tau, key):
        """SAC's: the next action is the first of a plan from the next state."""
        law, (_, after) = self.law(environment), self.seen(environment, rows)
        out = F.actor.params.head(self._begun(F.actor.params, after, environment.action.size))
        action, logp = jax.vmap(law.sample)(out, jax.random.split(key, r.shape[0]))
        V = self.worth(self.values(F.target, after, law.encoded(action))) - tau * logp
        return r + gamma * ongoing(rows) * V

    def recalled(self, model: Any, obs: Float[Array, "B o"], actions: Float[Array, "B j m"]) -> Float[Array, "B j o"]:
        """Scaled states in which encoded actions would be taken, by a model, from scaled ones; without gradients."""
        found = [obs]
        for p in range(actions.shape[1] - 1):
            found.append(jax.lax.stop_gradient(found[-1] + model(jnp.concatenate([found[-1], actions[:, p]], 1))))
        return jnp.stack(found, 1)

    def actor_loss(self, environment, F, actor, Q, rows, tau, key):
        law, (obs, _) = self.law(environment), self.seen(environment, rows)
        memory, s = self._begun(actor, obs, environment.action.size), obs
        said: list[Array] = []
        loss = jnp.zeros(obs.shape[0], jnp.float32)
        for p in range(self.length):
            keys = jax.random.split(key if p == 0 else jax.random.fold_in(key, p), obs.shape[0])
            action, logp = jax.vmap(law.sample)(actor.head(memory), keys)
            unit = law.encoded(action)
            loss, said = loss + tau * logp - self.worth(self.values(Q, s, unit)), [*said, logp]
            s = self.recalled(F.more.target, s, jnp.stack([unit, unit], 1))[:, 1]
            memory = actor.step(memory, unit)
        return jnp.mean(loss), (jnp.mean(jnp.stack(said), 0), F.more)

    def update(self, environment, F, rows, r, gamma, tau, key):
        F = super().update(environment, F, rows, r, gamma, tau, key)
        before, after = self.seen(environment, rows)
        taken = jnp.concatenate([before, self.law(environment).encoded(rows.t.action)], 1)
        slope = jax.grad(lambda f: jnp.mean((before + f(taken) - after) ** 2))(F.more.online.params)
        online = F.more.online.descend(slope, self.rate)
        model = Model(online, nets.follow(F.more.target, online.params, self.polyak))
        return eqx.tree_at(lambda f: f.more, F, model)


def _inner(environment: Environment) -> Environment:
    return environment.inner if isinstance(environment, OpenLoop) else environment
