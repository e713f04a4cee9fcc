r"""The language-model trainer against the finite engine: the same J, gradients and optimum, to rounding.

A table policy over a tree of prefixes is a finite MDP with a state a prefix; one token is a tree of one state. The
expectation of the trainer's own update over *every* batch of two completions, each weighted with its probability, is
compared with the finite engine's exact derivative: sampling, scoring, credit, ratios, objective and hyper-gradient all
lie on that path, and no tolerance for noise is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from bilevel_rl.finite.model import planning
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.llm.config import Config, former_keys
from bilevel_rl.llm.sampling.rollout import assemble, pad_prompts
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.schedules import PowerDecay

A, TAU, W, LAMBDA = 3, 0.4, 0.2, 0.05
PROMPT = A  # the prompt's token id; id 0 ends a completion


class Tree:
    """All completions of at most `depth` tokens, as sequences and as a finite MDP of discount 1."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.sequences = [(a,) for a in range(A)] if depth == 1 else [(0,)] + [
            (a, b) for a in range(1, A) for b in range(A)
        ]  # fmt: skip
        self.states = 1 if depth == 1 else A  # root, then the prefix (1,), (2,)
        n, random = len(self.sequences), np.random.default_rng(7)
        self.features = random.standard_normal((n, 2))
        self.gold = random.standard_normal(n)
        self.theta, self.theta_l = random.standard_normal((2, self.states, A))
        self.reference = random.standard_normal((self.states, A))
        self.x = np.array([0.7, -0.4])
        successors, probabilities = np.zeros((self.states, A, 1), int), np.zeros((self.states, A, 1))
        if depth == 2:
            for a in range(1, A):
                successors[0, a, 0], probabilities[0, a, 0] = a, 1.0
        start = np.eye(self.states)[0]
        # a token that ends the completion leads nowhere: rows that sum to 0, and discount 1
        self.mdp = FiniteMDP(
            successors=jnp.asarray(successors), probabilities=jnp.asarray(probabilities), start=jnp.asarray(start),
            start_keep=jnp.asarray(start), start_alias=jnp.zeros(self.states, int), discount=jnp.asarray(1.0),
            episodic=False,
        )  # fmt: skip

    def table(self, values) -> jnp.ndarray:
        """[S, A] from one number a completion, paid at its last token; differentiable."""
        reward = jnp.zeros((self.states, A))
        for i, sequence in enumerate(self.sequences):
            state = 0 if len(sequence) == 1 else sequence[0]
            reward = reward.at[state, sequence[-1]].set(values[i])
        return reward

    def regular(self, kind: str) -> jnp.ndarray:
        """[S, A] what turns entropy regularisation into the KL to the reference."""
        return TAU * jax.nn.log_softmax(jnp.asarray(self.reference)) if kind == "kl" else jnp.zeros((self.states, A))

    def lower(self, x, theta, kind: str):
        """J_tau(x, pi)."""
        reward = self.table(jnp.asarray(self.features) @ x) + self.regular(kind)
        return planning.expected_return(self.mdp, reward, jax.nn.softmax(theta), TAU)

    def upper(self, x, theta):
        """f = -E[gold] + lambda |x|^2."""
        pi = jax.nn.softmax(theta)
        return -planning.expected_return(self.mdp, self.table(jnp.asarray(self.gold)), pi) + LAMBDA * x @ x

    def penalised(self, x, theta, kind: str):
        """J - w f."""
        return self.lower(x, theta, kind) - W * self.upper(x, theta)

    def solve(self, x, kind: str, w: float = 0.0):
        """Logits of the exact optimum of J - w f."""
        reward = self.table(jnp.asarray(self.features) @ x + w * jnp.asarray(self.gold)) + self.regular(kind)
        return jnp.log(planning.soft_optimal(self.mdp, reward, TAU).pi)

    def hyper(self, x, theta, theta_l, w: float = W):
        """grad_x f(x, pi^L) + (1/w)(grad_x J(pi) - grad_x J(pi^L)), as the finite engine's oracle has it."""

        def lagrangian(x):
            gap = self.lower(x, theta, "entropy") - self.lower(x, theta_l, "entropy")
            return self.upper(x, theta_l) + gap / w

        return jax.jit(jax.grad(lagrangian))(x)

    def chances(self, theta) -> np.ndarray:
        """Probability of each completion."""
        pi = np.asarray(jax.nn.softmax(jnp.asarray(theta)))
        return np.array([pi[0, s[0]] * (pi[s[0], s[1]] if len(s) == 2 else 1.0) for s in self.sequences])


class TablePolicy(nn.Module):
    """Logits in a table, one row a prefix."""

    def __init__(self, logits) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(np.asarray(logits)))

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        state = input_ids.clone()
        state[state >= len(self.table)] = 0
        return SimpleNamespace(logits=self.table[state])


class TableReward(nn.Module):
    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor(tree.x))
        self.number = {s: i for i, s in enumerate(tree.sequences)}
        self.features = torch.tensor(tree.features)

    def forward(self, rollout):
        rows = [self.number[tuple(ids)] for ids in rollout.completion_ids()]
        return self.features[rows] @ self.x


class Batches:
    """Drives a trainer with chosen completions and collects the gradients that it would have applied."""

    def __init__(self, tree: Tree, **options) -> None:
        self.tree = tree
        number = {s: i for i, s in enumerate(tree.sequences)}
        former = {key: options.pop(key) for key in ("level",) if key in options}
        config = Config(
            steps=1, tau=TAU, w=W, x_penalty=LAMBDA, objective={"gold": 1.0}, prompts_per_step=1, group=2,
            max_new_tokens=tree.depth, stop_ids=[0] if tree.depth > 1 else [], dtype="float64", optimizer="sgd",
            ratio_clip=50.0, clip_norm=0.0, **({"estimator": "shared"} | options | former_keys(former)),
        )  # fmt: skip
        self.trainer = BilevelTrainer(
            config, TablePolicy(tree.theta), TableReward(tree), [[PROMPT]], reference=TablePolicy(tree.reference),
            gold=lambda completion_ids, **_: [tree.gold[number[tuple(ids)]] for ids in completion_ids],
            generator=self.generate,
        )  # fmt: skip
        self.set(tree.theta, tree.theta_l)
        self.trainer.apply = self._keep
        self.trainer.descend = self._keep_x

    def set(self, theta, theta_l) -> None:
        with torch.no_grad():
            for role, logits in (("policy", theta), ("policy_l", theta_l)):
                if role not in self.trainer.roles.names:
                    continue
                self.trainer.roles.modules[role].table.copy_(torch.tensor(np.asarray(logits)))

    def generate(self, model, prompts, uniforms):
        chosen = self.queue.pop(0)
        ids, attention = pad_prompts(prompts, 0)
        completion = torch.tensor([list(s) + [0] * (self.tree.depth - len(s)) for s in chosen])
        lengths = torch.tensor([len(s) for s in chosen])
        zeros = torch.zeros(2, self.tree.depth, dtype=torch.double)
        return assemble(prompts, ids, attention, completion, lengths, lengths > 0, zeros)

    def _keep(self, kind, roles, step, k):
        for role in roles:
            (parameter,) = self.trainer.roles.parameters(role).values()
            self.found[role] = parameter.grad.clone()
        return {}

    def _keep_x(self, hyper, zeta, k):
        self.found["x"] = hyper[0][0] + hyper[1][0]
        return {}

    def expectation(self, *laws) -> dict[str, np.ndarray]:
        """Mean of what one iteration finds, over all batches of two from each law."""
        tree, total = self.tree, {}
        draws = [list(itertools.product(range(len(tree.sequences)), repeat=2)) for _ in laws]
        for chosen in itertools.product(*draws):
            self.queue = [[tree.sequences[i] for i in pair] for pair in chosen]
            chance = np.prod([law[list(pair)].prod() for law, pair in zip(laws, chosen, strict=True)])
            self.found = {}
            line = self.trainer.iterate(0)
            self.found["reward"], self.found["upper"] = np.array(line["learned_reward"]), np.array(line["upper"])
            for key, value in self.found.items():
                total[key] = total.get(key, 0.0) + chance * np.asarray(value)
        return total


def close(found, exact):
    np.testing.assert_allclose(found, np.asarray(exact), atol=1e-10, rtol=0)


@functools.lru_cache
def exact_gradients(depth: int, kind: str) -> dict[str, np.ndarray]:
    """What the two policies and x descend along, by the finite engine's own differentiation."""
    tree = Tree(depth)
    x = jnp.asarray(tree.x)
    return {
        "policy": -jax.jit(jax.grad(lambda t: tree.lower(x, t, kind)))(jnp.asarray(tree.theta)),
        "policy_l": -jax.jit(jax.grad(lambda t: tree.penalised(x, t, kind)))(jnp.asarray(tree.theta_l)),
        "x": tree.hyper(x, tree.theta, tree.theta_l),
    }


VARIANTS = [
    ("kl", "exact", "token"), ("kl", "exact", "sequence"), ("kl", "k1", "token"), ("kl", "k1", "sequence"),
    ("entropy", "exact", "token"), ("entropy", "exact", "sequence"), ("entropy", "k1", "token"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "estimator", "level", "depth"), [(*v, 2) for v in VARIANTS] + [("kl", "exact", "token", 1)]
)
def test_shared_rollouts_give_both_policy_gradients_and_the_hyper_gradient(kind, estimator, level, depth):
    tree = Tree(depth)
    batches = Batches(tree, regularizer=kind, kl_estimator=estimator, level=level, estimator="shared")
    found = batches.expectation(tree.chances(tree.theta))
    exact = exact_gradients(depth, kind)
    for key in ("policy", "policy_l", "x"):
        close(found[key], exact[key])
    chances = tree.chances(tree.theta)
    close(found["reward"], chances @ tree.features @ tree.x)


@pytest.mark.parametrize("kind", ["kl", pytest.param("entropy", marks=pytest.mark.slow)])
def test_paired_rollouts_give_the_same_three(kind):
    tree = Tree(1)
    batches = Batches(tree, regularizer=kind, estimator="paired")
    found = batches.expectation(tree.chances(tree.theta), tree.chances(tree.theta_l))
    exact = exact_gradients(1, kind)
    for key in ("policy", "policy_l", "x"):
        close(found[key], exact[key])
    close(found["upper"], tree.upper(jnp.asarray(tree.x), tree.theta_l))


@pytest.mark.parametrize(("depth", "kind"), [pytest.param(1, "entropy", marks=pytest.mark.slow), (2, "kl")])
def test_at_the_finite_engines_optimum_both_followers_rest_and_x_sees_the_penalty_gradient(depth, kind):
    tree = Tree(depth)
    x = jnp.asarray(tree.x)
    theta, theta_l = tree.solve(x, kind), tree.solve(x, kind, W)
    batches = Batches(tree, regularizer=kind)
    batches.set(theta, theta_l)
    found = batches.expectation(tree.chances(theta))
    close(found["policy"], np.zeros_like(theta))
    close(found["policy_l"], np.zeros_like(theta))
    close(found["x"], tree.hyper(x, theta, theta_l))


@pytest.mark.parametrize(("depth", "kind"), [
    pytest.param(1, "kl", marks=pytest.mark.slow), (2, "entropy"), pytest.param(2, "kl", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_tilted_estimator_is_the_implicit_hyper_gradient_itself_at_the_lower_optimum(depth, kind):
    """No second policy, no w: by the finite engine's implicit differentiation, to rounding."""
    tree = Tree(depth)
    batches = Batches(tree, regularizer=kind, estimator="tilted")
    assert batches.trainer.roles.names == ("policy", "reward")
    x = jnp.asarray(tree.x)
    theta = tree.solve(x, kind)
    batches.set(theta, None)
    found = batches.expectation(tree.chances(theta))
    close(found["policy"], np.zeros_like(theta))
    close(found["x"], jax.jit(jax.grad(lambda x: tree.upper(x, tree.solve(x, kind))))(x))


def test_with_sampled_kl_at_sequence_level_the_update_vanishes_at_the_optimum_in_every_single_batch():
    """At the optimum r - tau log(pi / ref) is the same for all completions: the estimator has no noise left."""
    tree = Tree(2)
    theta = tree.solve(jnp.asarray(tree.x), "kl")
    for estimator, silent in (("k1", True), ("exact", False)):
        batches = Batches(tree, kl_estimator=estimator, level="sequence")
        batches.set(theta, theta)
        batches.queue, batches.found = [[(1, 2), (2, 0)]], {}
        batches.trainer.iterate(0)
        assert (float(batches.found["policy"].abs().max()) < 1e-12) is silent


def test_the_value_of_a_completion_is_the_finite_engines_return():
    tree = Tree(2)
    batches = Batches(tree)
    trainer, chances = batches.trainer, tree.chances(tree.theta)
    total = 0.0
    for i, j in itertools.product(range(len(tree.sequences)), repeat=2):
        batches.queue = [[tree.sequences[i], tree.sequences[j]]]
        theta = trainer.score(trainer.sample(0), TAU, False, 0)[0]
        total += chances[i] * chances[j] * float((theta.reward - theta.cost.sum(1)).mean())
    close(total, tree.lower(jnp.asarray(tree.x), jnp.asarray(tree.theta), "kl"))


def test_the_trainers_hyper_gradient_approaches_central_differences_of_the_solved_problem_at_rate_w():
    tree = Tree(2)

    phi = jax.jit(lambda x: tree.upper(x, tree.solve(x, "kl")))

    h = 1e-4
    differences = np.array([float(phi(tree.x + h * e) - phi(tree.x - h * e)) / (2 * h) for e in np.eye(2)])
    errors, ws = [], (0.1, 0.001)
    for w in ws:
        batches = Batches(tree)
        scales = dataclasses.replace(batches.trainer.schedules, w=PowerDecay(w))
        batches.trainer.settings = dataclasses.replace(batches.trainer.settings, schedules=scales)
        x = jnp.asarray(tree.x)
        batches.set(tree.solve(x, "kl"), tree.solve(x, "kl", w))
        found = batches.expectation(tree.chances(tree.solve(x, "kl")))
        errors.append(np.linalg.norm(found["x"] - differences))
    slope = np.polyfit(np.log(ws), np.log(errors), 1)[0]
    assert 0.9 < slope < 1.1
    assert errors[-1] < 4e-3 * np.linalg.norm(differences)
