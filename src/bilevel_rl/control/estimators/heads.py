r"""A critic with several heads: discounted sums of anything paid along the follower's way, per state and action.

$$q_i(s,a) = (1-\gamma_i) \big(y_i + \tfrac{\gamma_i}{1-\gamma_i}\, E_{a'\sim\pi}\, q_i(s', a')\big)$$

Values are means, not sums: heads of all discounts are of the size of what they count.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.estimators.estimator import Here
from bilevel_rl.control.followers.follower import branch, ongoing, scaled
from bilevel_rl.control.replay import Rows


class Heads(eqx.Module):
    """One network with h outputs for each pair.

    Attributes:
        online: with Adam's memory.
        target: a slow copy.
    """

    online: nets.Trained
    target: nets.MLP


def begin(environment: Environment, heads: int, width: int, key: Array) -> Heads:
    """Networks that say about 0."""
    o, action = environment.observation.size, environment.action
    discrete = hasattr(action, "n")
    inputs, outputs = (o, heads * action.n) if discrete else (o + action.size, heads)
    net = nets.MLP.make((inputs, width, width, outputs), key, last=0.1)
    return Heads(nets.Trained.begin(net), net)


def of_pairs(environment: Environment, net: nets.MLP, obs: Float[Array, "B o"], actions: Float[Array, "B M e"]):
    """[B, M, h] heads of some encoded actions in each state."""
    M, obs = actions.shape[1], scaled(environment, obs)
    if not hasattr(environment.action, "n"):
        # the first layer's part that belongs to the state is computed once a state
        W, b = net.weights[0], net.biases[0]
        o = obs.shape[1]
        hidden = jax.nn.relu((obs @ W[:o] + b)[:, None] + actions @ W[o:])
        return nets.MLP(net.weights[1:], net.biases[1:])(hidden)
    tables = net(obs).reshape(obs.shape[0], environment.action.n, -1)
    return tables if M == environment.action.n else jnp.einsum("bme,beh->bmh", actions, tables)


def learn(
    here: Here, heads: Heads, F, rows: Rows, paid: Float[Array, "B h"], gammas: Float[Array, " h"], rate, polyak, key: Array
) -> Heads:  # fmt: skip
    """One step of temporal differences, off-policy: the next action is the present policy's.

    Args:
        paid: what each head counts.
        gammas: of each head.
    """
    env, law = here.environment, here.follower.law(here.environment)
    actions, weights = branch(here.follower, env, F, rows.t.next_obs, 1, key)
    after = jnp.einsum("bm,bmh->bh", weights, of_pairs(env, heads.target, rows.t.next_obs, actions))
    y = (1 - gammas) * paid + gammas * ongoing(rows)[:, None] * after
    taken = jax.vmap(law.encoded)(rows.t.action)[:, None]

    def loss(net: nets.MLP):
        return 0.5 * jnp.mean(jnp.sum((of_pairs(env, net, rows.t.obs, taken)[:, 0] - y) ** 2, -1))

    online = heads.online.descend(jax.grad(loss)(heads.online.params), rate)
    return Heads(online, nets.follow(heads.target, online.params, polyak))


def advantage(here: Here, net: nets.MLP, F, rows: Rows, M: int, key: Array) -> Float[Array, "B h"]:
    """Heads of the action taken, less their mean under the policy."""
    env = here.environment
    actions, weights = branch(here.follower, env, F, rows.t.obs, M, key)
    mean = jnp.einsum("bm,bmh->bh", weights, of_pairs(env, net, rows.t.obs, actions))
    taken = jax.vmap(here.follower.law(env).encoded)(rows.t.action)[:, None]
    return of_pairs(env, net, rows.t.obs, taken)[:, 0] - mean
