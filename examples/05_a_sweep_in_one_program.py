"""Two settings times four seeds in one compiled program: the same bits as separate runs."""

import dataclasses

import numpy as np

from bilevel_rl.finite import solve
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.finite.solvers import PenaltyActorCritic
from bilevel_rl.schedules import PowerDecay

problem, base = GoalPlacement(rows=4, columns=4), PenaltyActorCritic(chains=8)
settings = [
    dataclasses.replace(base, scales=dataclasses.replace(base.scales, zeta=PowerDecay(zeta, 0.9))) for zeta in (0.1, 0.5)
]
together = solve(problem, settings, iterations=300, runs=4, seed=7)
for i, setting in enumerate(settings):
    alone = solve(problem, setting, iterations=300, runs=4, seed=7)
    rows = slice(4 * i, 4 * i + 4)
    print(f"zeta_0 = {setting.scales.zeta.initial}: final x {alone.x[:, -1].round(3).tolist()}")
    np.testing.assert_array_equal(together.x[rows], alone.x)
print("in one program or apart: the same bits")
