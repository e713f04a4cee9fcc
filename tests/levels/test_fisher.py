"""The implicit hyper-gradient of a policy that can't be its reward's tilt, against enumeration."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from table_engine import TableEngine, TableLabels
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels import methods
from bilevel_rl.levels.curvature import LowerCurvature, conjugate_gradients
from bilevel_rl.levels.loop import Loop
from bilevel_rl.levels.objectives import Gold
from bilevel_rl.levels.settings import Settings
from bilevel_rl.policy_gradient.recipes import named
from bilevel_rl.schedules import PowerDecay, TimeScales

TAU, G = 0.3, 16
SCALES = TimeScales(PowerDecay(0.1), PowerDecay(0.1), PowerDecay(0.1), PowerDecay(0.4), PowerDecay(TAU))


class NarrowEngine(TableEngine):
    """A policy that moves in a plane of its table, as an adapter of low rank does: it can't be any tilt."""

    def __init__(self, dims: int = 2, **options) -> None:
        super().__init__(networks=1, **options)
        shape = (dims, *self.reference.shape)
        self.plane = torch.tensor(np.random.default_rng(5).standard_normal(shape))
        self.tables["policy"] = {"theta": nn.Parameter(torch.zeros(dims, dtype=torch.double))}

    def table(self, role: str) -> Tensor:
        return self.reference + torch.einsum("d,dpa->pa", self.tables["policy"]["theta"], self.plane)


def made(curvature: str = "fisher", **more) -> Loop:
    """Two groups of sixteen rows, which are the law of a uniform reference of four sequences exactly."""
    engine = NarrowEngine(rows=2 * G, group=G)
    engine.reference = torch.zeros_like(engine.reference)
    settings = Settings(
        estimator="fisher", batch=2 * G, group=G, schedules=SCALES, optimizer="sgd", fisher_damping=0.0, curvature=curvature,
        **more,
    )  # fmt: skip
    engine.queue = [list(range(4)) * (2 * G // 4)] * 2
    return Loop(engine, settings, Gold(), TableLabels(engine), named("token_rloo"))


def enumerated(engine: NarrowEngine) -> dict[str, Tensor]:
    """Law, scores [S, D], Fisher matrix, residual and covariances at the engine's theta."""
    theta = engine.tables["policy"]["theta"]
    every = engine.episodes(range(len(engine.all)))
    x = engine.tables["reward"]["x"].detach()
    scores = torch.autograd.functional.jacobian(lambda t: _logp(engine, t, every), theta.detach())
    law = engine.law("policy").detach()
    r = engine.features @ x
    hessian = torch.autograd.functional.hessian(lambda t: _value(engine, t, r), theta.detach())
    fisher = scores.T @ (law[:, None] * scores)
    return {"law": law, "scores": scores, "fisher": fisher, "residual": hessian + TAU * fisher}


def _logp(engine: NarrowEngine, theta: Tensor, every) -> Tensor:
    table = engine.reference + torch.einsum("d,dpa->pa", theta, engine.plane)
    log_p = table[engine.history[every.number]].log_softmax(-1)
    return log_p.gather(-1, every.actions[..., None])[..., 0].sum(1)


def _value(engine: NarrowEngine, theta: Tensor, r: Tensor) -> Tensor:
    every = engine.episodes(range(len(engine.all)))
    logp = _logp(engine, theta, every)
    reference = _logp(engine, torch.zeros_like(theta), every)
    return (logp.exp() * (r - TAU * (logp - reference))).sum()


def followers(loop: Loop):
    return loop.score(loop.sample(0), TAU, False, 0)


def test_products_are_those_of_the_enumerated_matrices():
    loop = made()
    f = followers(loop)[0]
    curvature, exact = LowerCurvature(loop.leader, f, TAU), enumerated(loop.engine)
    v = [torch.tensor([0.3, -1.2], dtype=torch.double)]
    close = {"atol": 1e-7, "rtol": 1e-6}
    torch.testing.assert_close(curvature.fisher(v)[0], exact["fisher"] @ v[0], **close)
    torch.testing.assert_close(curvature.scores_times(v), (exact["scores"] @ v[0])[f.rows.number], **close)
    # the level that is taken off is that of the others: G / (G - 1) of what is left
    torch.testing.assert_close(curvature.residual(v)[0] * (G - 1) / G, exact["residual"] @ v[0], **close)
    c = loop.engine.gold[f.rows.number]
    stated = exact["scores"].T @ (exact["law"] * loop.engine.gold)
    torch.testing.assert_close(curvature.scores_transposed(c)[0], stated, **close)


def test_looking_at_the_curvature_leaves_the_weights_and_a_kept_graph_as_they_were():
    loop = made()
    theta = loop.engine.tables["policy"]["theta"]
    before = theta.detach().clone()
    loop.iterate(0)  # a pass whose graph learning uses after x has looked
    assert torch.isfinite(theta).all()
    assert not torch.equal(theta, before)
    with torch.no_grad():
        theta.copy_(before)
    LowerCurvature(loop.leader, followers(loop)[0], TAU).fisher([torch.ones(2, dtype=torch.double)])
    assert torch.equal(theta.detach(), before)


def test_the_estimate_is_the_formula_where_the_batch_is_the_law():
    loop = made()
    engine, found = loop.engine, {}
    loop.descend = lambda hyper, zeta, k: found.update(x=hyper.total[0]) or {}
    e = enumerated(engine)
    loop.iterate(0)
    u, phi, law = engine.gold, engine.features, e["law"]
    up = e["scores"].T @ (law * u)
    across = e["scores"].T @ (law[:, None] * phi)
    stated = -torch.linalg.solve(TAU * e["fisher"], up) @ across * (G / (G - 1)) ** 2
    torch.testing.assert_close(found["x"], stated, atol=1e-7, rtol=1e-6)


def test_with_the_residual_the_formula_is_the_exact_hyper_gradient():
    engine = made().engine
    theta, x = engine.tables["policy"]["theta"], engine.tables["reward"]["x"].detach()

    def optimum(x: Tensor) -> Tensor:
        t = theta.detach().clone()
        for _ in range(60):  # Newton
            value = lambda t: _value(engine, t, engine.features @ x)  # noqa: E731
            g = torch.autograd.functional.jacobian(value, t)
            t = t - torch.linalg.solve(torch.autograd.functional.hessian(value, t), g)
        return t

    every = engine.episodes(range(4))

    def phi(x: Tensor) -> float:
        return float((_logp(engine, optimum(x), every).exp() * engine.gold).sum())

    step = 1e-4
    exact = torch.tensor([(phi(x + step * e) - phi(x - step * e)) / (2 * step) for e in torch.eye(2).double()])
    with torch.no_grad():
        theta.copy_(optimum(x))
    e = enumerated(engine)
    up = e["scores"].T @ (e["law"] * engine.gold)
    across = e["scores"].T @ (e["law"][:, None] * engine.features)
    whole = torch.linalg.solve(TAU * e["fisher"] - e["residual"], up) @ across
    torch.testing.assert_close(whole, exact.double(), atol=1e-6, rtol=1e-5)
    short = torch.linalg.solve(TAU * e["fisher"], up) @ across
    assert float((short - exact).norm() / exact.norm()) > 0.05  # the Fisher matrix alone is not the curvature here


def test_conjugate_gradients_solve_and_stop_where_the_curvature_is_not_positive():
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    g = [torch.tensor([1.0, -1.0])]
    found = conjugate_gradients(lambda v: [matrix @ v[0]], g, steps=2, damping=0.0)[0]
    torch.testing.assert_close(matrix @ found, g[0])
    assert conjugate_gradients(lambda v: [-v[0]], g, steps=2, damping=0.0)[0].tolist() == [0.0, 0.0]
    assert conjugate_gradients(lambda v: [v[0]], [torch.zeros(2)], steps=2, damping=0.1)[0].tolist() == [0.0, 0.0]


def test_one_group_has_no_other_half():
    with pytest.raises(InvalidConfig, match="half of the groups gives the direction of the other half"):
        methods.method_of(Settings(estimator="fisher", batch=4, group=4)).check(Gold())


def test_a_nested_run_moves_x_by_the_inner_estimate():
    loop = made(method="nested", inner_steps=1)
    before = loop.engine.tables["reward"]["x"].detach().clone()
    loop.iterate(0)
    assert not torch.equal(loop.engine.tables["reward"]["x"].detach(), before)
