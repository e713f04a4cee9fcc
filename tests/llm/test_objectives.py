"""Upper objectives: by enumeration, their bonus is the policy gradient of f and their loss has f's gradient in x."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels.objectives import (
    Gold,
    LabelLikelihood,
    Mixture,
    Preference,
    Sample,
    StoredPreference,
    WinRate,
    make_objective,
)
from bilevel_rl.llm.sampling.rollout import Rollout

V = 3
SCORE = torch.tensor([0.3, -1.0, 2.0], dtype=torch.double)
THETA = torch.tensor([0.1, -0.4, 0.7], dtype=torch.double)
OTHER = torch.tensor([0.3, 0.1, 0.2], dtype=torch.double)
X = torch.tensor([0.5, -0.2, 1.0], dtype=torch.double)


def rollout(tokens) -> Rollout:
    n = len(tokens)
    ids = torch.stack([torch.zeros(n, dtype=torch.long), torch.as_tensor(tokens)], 1)
    one = torch.ones(n, dtype=torch.long)
    return Rollout([], ids, torch.ones_like(ids), one, one.bool(), torch.zeros(n, 1), torch.zeros(n))


def sample(tokens, x=X, weights=None, ordered=True) -> Sample:
    tokens = list(tokens)
    rewards = x[tokens].clone().requires_grad_()
    pairs = torch.tensor([[i, i + 1] for i in range(0, len(tokens) - 1, 2)])
    # the judge prefers the higher score; equal scores keep their order
    flip = SCORE[torch.tensor(tokens)[pairs[:, 0]]] < SCORE[torch.tensor(tokens)[pairs[:, 1]]]
    pairs = torch.where(flip[:, None], pairs.flip(1), pairs)
    weights = torch.ones(len(tokens), dtype=torch.double) if weights is None else weights
    return Sample(rollout(tokens), rewards, weights, SCORE[tokens], pairs, lambda r: x[r.completions[:, 0]])


def f_preference(law, x):
    total = 0.0
    for a, b in itertools.product(range(V), repeat=2):
        good, bad = (b, a) if SCORE[a] < SCORE[b] else (a, b)
        total = total - law[a] * law[b] * F.logsigmoid(x[good] - x[bad])
    return total


def f_gold(law, x):
    return -(law * SCORE).sum()


@pytest.mark.parametrize(("objective", "f"), [(Preference(), f_preference), (Gold(), f_gold)])
@pytest.mark.parametrize("n", [2, 4])
def test_bonus_is_the_policy_gradient_of_f_and_loss_its_gradient_in_x(objective, f, n):
    theta, x = THETA.clone().requires_grad_(), X.clone().requires_grad_()
    exact_theta, exact_x = torch.autograd.grad(f(theta.softmax(0), x), (theta, x), allow_unused=True)
    law = THETA.softmax(0)
    score = torch.eye(V, dtype=torch.double) - law  # grad log pi of each token
    mean_theta, mean_x, mean_value = torch.zeros(V).double(), torch.zeros(V).double(), 0.0
    for tokens in itertools.product(range(V), repeat=n):
        chance, s = law[list(tokens)].prod(), sample(tokens)
        upper = objective.evaluate(s)
        mean_theta -= chance * (upper.total[:, None] * score[list(tokens)]).mean(0)
        mean_value += float(chance) * upper.value
        if upper.loss is not None:
            (g,) = torch.autograd.grad(upper.loss, s.rewards)
            mean_x = mean_x.index_add(0, torch.tensor(tokens), chance * g)
    torch.testing.assert_close(mean_theta, exact_theta)
    torch.testing.assert_close(torch.tensor(mean_value).double(), f(law, X))
    torch.testing.assert_close(mean_x, torch.zeros(V).double() if exact_x is None else exact_x)


@pytest.mark.parametrize(("objective", "f"), [(Preference(), f_preference), (Gold(), f_gold)])
def test_with_ratios_the_completions_of_one_policy_answer_for_another(objective, f):
    """Bonus times ratio under theta is the gradient of f at theta^L."""
    theta_l = OTHER.clone().requires_grad_()
    (exact,) = torch.autograd.grad(f(theta_l.softmax(0), X), theta_l)
    law, law_l = THETA.softmax(0), OTHER.softmax(0)
    rho, score = law_l / law, torch.eye(V, dtype=torch.double) - law_l
    mean = torch.zeros(V, dtype=torch.double)
    for tokens in itertools.product(range(V), repeat=2):
        tokens = list(tokens)
        bonus = objective.evaluate(sample(tokens, weights=rho[tokens])).total
        mean -= law[tokens].prod() * (rho[tokens, None] * bonus[:, None] * score[tokens]).mean(0)
    torch.testing.assert_close(mean, exact)


def f_win_rate(law, opponent):
    wins = torch.tensor([[float(SCORE[a] > SCORE[b]) + 0.5 * (a == b) for b in range(V)] for a in range(V)]).double()
    return -(law @ wins @ opponent)


@pytest.mark.parametrize("n", [2, 4])
def test_win_rate_is_the_gradient_against_the_policy_itself_held_fixed(n):
    theta = THETA.clone().requires_grad_()
    law = THETA.softmax(0)
    (exact,) = torch.autograd.grad(f_win_rate(theta.softmax(0), law), theta)
    score, mean = torch.eye(V, dtype=torch.double) - law, torch.zeros(V).double()
    for tokens in itertools.product(range(V), repeat=n):
        upper = WinRate().evaluate(sample(tokens))
        mean -= law[list(tokens)].prod() * (upper.total[:, None] * score[list(tokens)]).mean(0)
        assert upper.loss is None
    torch.testing.assert_close(mean, exact)


def test_the_likelihood_of_labels_taken_as_data_asks_nothing_of_the_policy():
    s = sample([0, 1, 2, 2])
    fresh, data = Preference().evaluate(s), LabelLikelihood().evaluate(s)
    assert data.value == fresh.value
    assert torch.equal(data.loss, fresh.loss)
    assert data.total.abs().max() == 0 < fresh.total.abs().max()


def test_stored_preferences_do_not_depend_on_the_policy():
    s = sample([0, 1])
    x = X.clone().requires_grad_()
    s.reward = lambda r: x[r.completions[:, 0]]
    s.stored, s.stored_total = (rollout([2, 2]), rollout([0, 1])), 2
    upper = StoredPreference().evaluate(s)
    exact = -(F.logsigmoid(x[2] - x[0]) + F.logsigmoid(x[2] - x[1])) / 2
    assert upper.value + upper.share == pytest.approx(exact.item())
    torch.testing.assert_close(upper.loss, exact)
    assert upper.bonus.abs().max() == 0


def test_replayed_pairs_join_the_mean_of_the_fresh_ones():
    s = sample([0, 1, 2, 2])
    alone = Preference().evaluate(s)
    s.replayed, s.replayed_total = (rollout([2, 2]), rollout([0, 1])), 2
    both = Preference().evaluate(s)
    replay = -(F.logsigmoid(X[2] - X[0]) + F.logsigmoid(X[2] - X[1])) / 2
    torch.testing.assert_close(both.loss.detach(), (alone.loss.detach() + replay) / 2)
    assert torch.equal(both.total, alone.total)


def test_a_mixture_is_the_weighted_sum():
    s = sample([0, 1, 2, 2])
    mixed = make_objective({"gold": 0.25, "preference": 2.0})
    assert isinstance(mixed, Mixture)
    assert mixed.needs_gold
    assert mixed.needs_pairs
    assert not mixed.needs_stored
    gold, preference, both = Gold().evaluate(s), Preference().evaluate(s), mixed.evaluate(s)
    assert both.value == pytest.approx(0.25 * gold.value + 2 * preference.value)
    torch.testing.assert_close(both.total, 0.25 * gold.total + 2 * preference.total)
    torch.testing.assert_close(both.loss, 2 * preference.loss)


def test_an_unknown_objective_is_named_with_the_nearest():
    with pytest.raises(InvalidConfig, match="'golf'; Did you mean 'gold'"):
        make_objective({"golf": 1.0})
