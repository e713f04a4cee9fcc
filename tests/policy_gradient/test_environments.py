"""Recipes in environments of Gymnasium: rows are episodes, and the on-policy systems of the list learn in them."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

from bilevel_rl.policy_gradient.credit import Polychromic, RewardToGo, ToGoLeaveOneOut
from bilevel_rl.policy_gradient.environments import Episodes
from bilevel_rl.policy_gradient.losses import MirrorDescent
from bilevel_rl.policy_gradient.optimiser import PolicyOptimiser
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.reward import Coverage
from bilevel_rl.policy_gradient.steps.plain import Adam
from bilevel_rl.schedules import PowerDecay


class Line(gymnasium.Env):
    """Five cells in a row, from the middle on; 1 is paid at the right end, where it is over."""

    observation_space, action_space = gymnasium.spaces.Discrete(5), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 2
        return self.place, {}

    def step(self, action):
        self.place = int(np.clip(self.place + 2 * action - 1, 0, 4))
        there = self.place == 4
        return self.place, float(there), there, False, {}


def cell(obs):
    return int(np.argmax(obs))


def line(**options):
    return Episodes(Line, rows=16, steps=6, width=16, answer=lambda path: cell(path[-1]), cover=cell, elements=5, **options)


def trained(recipe, steps):
    episodes = line()
    optimiser = PolicyOptimiser(recipe, episodes.rollout, episodes.evaluate, Adam(PowerDecay(0.02, 0.0)))
    state = optimiser.init(episodes.parameters())
    scores = []
    for _ in range(steps):
        state, batch = optimiser.step(state, episodes.reward, tau=0.0)
        scores.append(batch.score.mean().item())
    episodes.close()
    return scores, batch


def test_rows_are_episodes_and_their_probabilities_are_the_policys():
    episodes = line()
    batch, again = (episodes.rollout(episodes.parameters(), 3) for _ in range(2))
    assert torch.equal(batch.extras["completions"], again.extras["completions"])  # an iteration can be repeated
    over = batch.reward[..., 0].sum(1) > 0
    assert torch.equal(batch.done, over)
    assert (batch.length[~over] == 6).all()
    for i in range(16):  # nothing is paid or counted after the end
        assert not batch.mask[i, batch.length[i] :].any()
    law = episodes.policy(batch.extras["tokens_in"].float())
    torch.testing.assert_close(batch.old, law.log_prob(batch.extras["completions"]).detach() * batch.mask)
    torch.testing.assert_close(batch.ref[batch.mask].exp(), torch.full_like(batch.ref[batch.mask], 0.5))
    ends = batch.extras["tokens_in"].shape
    assert ends == (16, 6, 5)
    episodes.close()


def test_covers_pay_each_cell_once_and_sets_of_episodes_share_an_advantage():
    episodes = line()
    batch = episodes.rollout(episodes.parameters(), 0)
    gains = Coverage()(batch)[..., 0]
    after = batch.extras["cover"].float().numpy()
    visited = [len({cell(o) for o in row[m]}) for row, m in zip(after, batch.mask.numpy(), strict=True)]
    assert gains.sum(1).tolist() == visited
    advantage = Polychromic(size=4)(batch)
    for rows in (slice(0, 4), slice(4, 8)):
        found = advantage[rows][batch.mask[rows]]
        assert (found == found[0]).all()
    episodes.close()


def test_mirror_descent_and_coverage_learn_in_the_environment():
    pay, _ = trained(Recipe("mdpo", credit=ToGoLeaveOneOut(), loss=MirrorDescent(step=5.0)), 25)
    assert np.mean(pay[-5:]) > np.mean(pay[:5]) + 0.1
    covered, _ = trained(Recipe("subpo", reward=(Coverage(),), credit=RewardToGo()), 5)
    assert np.isfinite(covered).all()
