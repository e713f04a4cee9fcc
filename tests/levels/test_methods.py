"""Every method is the mean of its stated estimator, by enumeration of all batches of a table; sampled, within 4.5 errors."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from table_engine import TableEngine, TableLabels
from torch import Tensor

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels import methods
from bilevel_rl.levels.engine import POLICIES, REWARD
from bilevel_rl.levels.loop import Loop
from bilevel_rl.levels.objectives import ALL as OBJECTIVES
from bilevel_rl.levels.settings import Settings
from bilevel_rl.policy_gradient.recipes import named
from bilevel_rl.schedules import PowerDecay, TimeScales

TAU, W = 0.3, 0.4
SCALES = TimeScales(PowerDecay(0.1), PowerDecay(0.1), PowerDecay(0.1), PowerDecay(W), PowerDecay(TAU))


class Watched:
    """A loop whose gradients are collected and not applied; theta^L differs from theta."""

    def __init__(self, method: str, estimator: str, objective: str, rows: int, recipe: str = "token_rloo", moves: int = 2,
                 **more) -> None:  # fmt: skip
        settings = Settings(
            method=method, estimator=estimator, batch=rows, group=rows, schedules=SCALES, optimizer="sgd", clip_norm=0.0,
            ratio_clip=50.0, pairs_per_step=rows // 2, inner_steps=1, reward_steps=10**6,
            steps=10**6, **more,
        )  # fmt: skip
        made = methods.method_of(settings)
        self.engine = TableEngine(made.networks, rows, rows, moves=moves)
        self.loop = Loop(self.engine, settings, OBJECTIVES[objective], TableLabels(self.engine), named(recipe))
        self.loop.apply, self.loop.descend = self._kept, self._kept_x
        self.found: dict[str, Tensor] = {}
        if made.networks == 2:
            with torch.no_grad():
                shift = torch.tensor([[0.3, -0.1], [0.2, 0.0], [-0.4, 0.5]])
                table = self.engine.tables[POLICIES[1]]["logits"]
                table.add_(shift[: len(table)])

    def _kept(self, kind, roles, step, k):
        for role in roles:
            self.found[role] = self.engine.tables[role]["logits"].grad.clone()
        return {}

    def _kept_x(self, hyper, zeta, k):
        self.found["x"] = hyper.total[0].clone()
        return {}

    def once(self, k: int = 0) -> dict[str, Tensor]:
        """What one iteration finds."""
        self.found = {}
        self.loop.leader.replay.clear()  # what earlier batches left
        self.loop.iterate(k)
        return self.found

    def mean(self) -> dict[str, Tensor]:
        """Over all batches of each policy that samples."""
        sampling = POLICIES[: 2 if self.loop.method.own_rows else 1]
        laws = [self.engine.law(role).detach() for role in sampling]
        batches = list(itertools.product(range(len(self.engine.all)), repeat=self.engine.count))
        total: dict[str, Tensor] = {}
        for chosen in itertools.product(batches, repeat=len(laws)):
            chance = torch.stack([law[list(b)].prod() for law, b in zip(laws, chosen, strict=True)]).prod()
            self.engine.queue = [list(b) for b in chosen]
            for key, value in self.once().items():
                total[key] = total.get(key, 0.0) + chance * value
        return total

    # -- what is stated ------------------------------------------------------------------------------------------

    def f(self, law: Tensor, x: Tensor, objective: str) -> Tensor:
        """The upper objective of a law."""
        gold = self.engine.gold
        if objective == "gold":
            return -(law * gold).sum()
        r = self.engine.features @ x
        sign = torch.where(gold[:, None] >= gold[None, :], 1.0, -1.0)
        pairs = -(law[:, None] * law[None, :] * F.logsigmoid(sign * (r[:, None] - r[None, :]))).sum()
        if objective == "preference":
            return pairs
        if objective == "label_likelihood":
            fixed = law.detach()
            return -(fixed[:, None] * fixed[None, :] * F.logsigmoid(sign * (r[:, None] - r[None, :]))).sum()
        wins = (gold[:, None] > gold[None, :]).double() + 0.5 * torch.eye(len(gold))
        return -law @ wins @ law.detach()

    def stated(self, objective: str) -> dict[str, Tensor]:
        """Minus the ascent directions of both followers, and the direction of x."""
        engine, loop = self.engine, self.loop
        x = engine.tables[REWARD]["x"].detach().clone().requires_grad_()
        theta = engine.tables["policy"]["logits"]
        method, settings = loop.settings.method, loop.settings
        found: dict[str, Tensor] = {}
        ends = {"policy": x.detach(), "policy_l": x.detach()}
        if method == "finite_difference":
            (d,) = loop.method.direction(loop.leader, 0)
            c = settings.difference
            ends = {"policy": x.detach() + c * d, "policy_l": x.detach() - c * d}
        moves = method != "fixed_reward"
        if moves:
            (g,) = torch.autograd.grad(engine.value("policy", ends["policy"], TAU), theta)
            found["policy"] = -g
        if moves and loop.method.networks == 2:
            table = engine.tables["policy_l"]["logits"]
            goal = engine.value("policy_l", ends["policy_l"], TAU)
            if method != "finite_difference":
                goal = goal - W * self.f(engine.law("policy_l"), x.detach(), objective)
            found["policy_l"] = -torch.autograd.grad(goal, table)[0]
        last = POLICIES[loop.method.networks - 1]
        law, law_l = engine.law("policy").detach(), engine.law(last).detach()
        (direct,) = torch.autograd.grad(self.f(law_l, x, objective) + 0 * x.sum(), x)
        penalty = torch.zeros_like(x).detach()
        if method in ("bilevel", "nested") and settings.estimator == "tilted":
            u = law.clone().requires_grad_()
            (du,) = torch.autograd.grad(-self.f(u, x.detach(), objective) + 0 * u.sum(), u)
            penalty = -(law * (du - law @ du)) @ engine.features / TAU
        elif method in ("bilevel", "nested"):
            penalty = (law - law_l) @ engine.features / W
        if method == "finite_difference":
            f_plus = self.f(law, ends["policy"], objective)
            f_minus = self.f(law_l, ends["policy_l"], objective)
            direct = (f_plus - f_minus) / (2 * settings.difference) * d
        if method != "plain":
            found["x"] = direct + penalty
        return found


CASES = [
    ("bilevel", "tilted", "gold", 2), ("bilevel", "tilted", "win_rate", 2), ("bilevel", "tilted", "preference", 3),
    ("bilevel", "tilted", "preference", 4), ("bilevel", "tilted", "win_rate", 4),
    ("bilevel", "tilted", "label_likelihood", 2),
    ("bilevel", "shared", "gold", 2), ("bilevel", "paired", "gold", 2), ("bilevel", "paired", "preference", 2),
    ("bilevel", "paired", "win_rate", 2), ("nested", "tilted", "gold", 2), ("nested", "shared", "gold", 2),
    ("nested", "paired", "gold", 2), ("partial_sgd", "tilted", "preference", 2),
    ("partial_sgd", "tilted", "label_likelihood", 2), ("fixed_reward", "tilted", "label_likelihood", 2),
    ("finite_difference", "tilted", "gold", 2), ("plain", "tilted", "gold", 2),
]  # fmt: skip


# The cut that `make test` runs: every method, every estimator, every objective and every kind of leaving out is in it once.
# The rest is slow.
QUICK = {
    ("bilevel", "tilted", "preference", 3), ("bilevel", "tilted", "win_rate", 2), ("bilevel", "shared", "gold", 2),
    ("bilevel", "paired", "gold", 2), ("nested", "shared", "gold", 2), ("partial_sgd", "tilted", "label_likelihood", 2),
    ("fixed_reward", "tilted", "label_likelihood", 2), ("plain", "tilted", "gold", 2),
}  # fmt: skip
SAMPLED = ("finite_difference", "tilted", "gold", 2)  # two laws of its own: enumerated is slow, sampled is quick


def cut(cases, keep):
    """Cases as parameters: slow where `keep` is not true of them."""
    return [case if keep(case) else pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("case", cut(CASES, QUICK.__contains__), ids=lambda case: " ".join(map(str, case)))
def test_the_mean_over_all_batches_is_the_stated_estimator(case):
    method, estimator, objective, rows = case
    made = Watched(method, estimator, objective, rows)
    found, stated = made.mean(), made.stated(objective)
    assert found.keys() == stated.keys()
    for key, value in stated.items():
        torch.testing.assert_close(found[key], value, atol=1e-10, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("objective", ["win_rate", "preference"])
@pytest.mark.parametrize("rows", cut([2, 4], lambda rows: rows == 2))
def test_theta_l_on_shared_rows_ascends_the_pairs_own_bonus(objective, rows):
    """At theta = theta^L all ratios are 1: without a baseline that knows one of the pair, the bonus counts once."""
    made = Watched("bilevel", "shared", objective, rows)
    with torch.no_grad():
        made.engine.tables["policy_l"]["logits"].copy_(made.engine.tables["policy"]["logits"])
    torch.testing.assert_close(made.mean()["policy_l"], made.stated(objective)["policy_l"], atol=1e-10, rtol=0)


EIGHT = [("tilted", "win_rate"), ("shared", "preference"), ("tilted", "preference"), ("shared", "win_rate")]


@pytest.mark.parametrize("case", cut(EIGHT, EIGHT[:1].__contains__), ids=" ".join)
def test_bonuses_of_pairs_have_no_bias_in_groups_of_eight(case):
    """Two completions and eight rows: 256 batches. A baseline that knew one row of a pair would be off by 1/7."""
    estimator, objective = case
    made = Watched("bilevel", estimator, objective, 8, moves=1)
    if estimator == "shared":
        with torch.no_grad():
            made.engine.tables["policy_l"]["logits"].copy_(made.engine.tables["policy"]["logits"])
    found, stated = made.mean(), made.stated(objective)
    assert float(stated["policy_l" if estimator == "shared" else "x"].norm()) > 1e-3
    for key, value in stated.items():
        torch.testing.assert_close(found[key], value, atol=1e-10, rtol=0, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("recipe", cut(["rloo", "token_rloo", "reinforce"], lambda name: name == "rloo"))
def test_recipes_that_keep_the_objective_have_one_mean(recipe):
    made = Watched("bilevel", "paired", "win_rate", 2, recipe)
    found, stated = made.mean(), made.stated("win_rate")
    for key in ("policy", "policy_l"):
        torch.testing.assert_close(found[key], stated[key], atol=1e-10, rtol=0)


def exact(engine: TableEngine) -> Tensor:
    """The gradient of f(pi*(x)) by differentiating the closed form."""
    x = engine.tables[REWARD]["x"].detach().clone().requires_grad_()
    return torch.autograd.grad(-(engine.optimum(x, TAU) * engine.gold).sum(), x)[0]


def test_tilted_is_the_exact_hyper_gradient_at_the_lower_optimum():
    made = Watched("bilevel", "tilted", "gold", 3)
    x = made.engine.tables[REWARD]["x"].detach()
    made.engine.set_law("policy", made.engine.optimum(x, TAU))
    found = made.mean()
    torch.testing.assert_close(found["x"], exact(made.engine), atol=1e-10, rtol=0)
    torch.testing.assert_close(found["policy"], torch.zeros(3, 2).double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("estimator", ["shared", "paired"])
def test_at_both_optima_the_penalty_is_the_hyper_gradient_up_to_w(estimator):
    made = Watched("bilevel", estimator, "gold", 2)
    engine = made.engine
    x = engine.tables[REWARD]["x"].detach()
    law, law_l = engine.optimum(x, TAU), engine.optimum(x, TAU, W * engine.gold)
    engine.set_law("policy", law), engine.set_law("policy_l", law_l)
    found = made.mean()
    torch.testing.assert_close(found["x"], (law - law_l) @ engine.features / W, atol=1e-10, rtol=0)
    for role in POLICIES:
        torch.testing.assert_close(found[role], torch.zeros(3, 2).double(), atol=1e-10, rtol=0)
    errors = [
        float(((law - engine.optimum(x, TAU, w * engine.gold)) @ engine.features / w - exact(engine)).norm())
        for w in (1e-2, 1e-3)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize(
    "case",
    cut([c for c in CASES if c[3] == 2 and c[0] != "plain"], {SAMPLED, ("nested", "paired", "gold", 2)}.__contains__),
    ids=lambda c: " ".join(map(str, c)),
)
def test_sampled_means_are_within_their_errors(case):
    method, estimator, objective, rows = case
    made = Watched(method, estimator, objective, rows)
    stated = made.stated(objective)
    seen: dict[str, list[Tensor]] = {key: [] for key in stated}
    for k in range(150):
        # one direction of x for all iterations of the finite difference
        found = made.once(0 if method == "finite_difference" else k)
        for key, value in found.items():
            seen[key].append(value)
        if method == "finite_difference":
            made.engine.seed += 1
    for key, values in seen.items():
        if not values:
            continue
        drawn = torch.stack(values)
        error = drawn.std(0) / len(drawn) ** 0.5
        assert bool(((drawn.mean(0) - stated[key]).abs() <= 4.5 * error + 1e-9).all()), key


def test_what_a_method_cannot_do_is_refused_by_it():
    with pytest.raises(InvalidConfig, match="its covariance needs a third row"):
        Watched("bilevel", "tilted", "preference", 2)
    with pytest.raises(InvalidConfig, match="its covariance needs a third row"):
        Watched("nested", "tilted", "preference", 2)
    with pytest.raises(InvalidConfig, match="two policies answer two values of x"):
        Watched("finite_difference", "tilted", "gold", 2, coupling=0.5)
    with pytest.raises(InvalidConfig, match="nothing would fit the reward model"):
        Watched("fixed_reward", "tilted", "gold", 2)
    with pytest.raises(InvalidConfig, match=r"config\.method: got 'nestd'; Did you mean 'nested'"):
        methods.method_of(Settings(method="nestd"))
