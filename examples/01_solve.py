"""Solve the default problem with the recommended solver, and grade it by exact oracles."""

from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.finite.solvers import CoupledPenalty

problem = GoalPlacement()
best = oracles.brute_force(problem, tau=problem.temperature())
trace = solve(problem, CoupledPenalty(), iterations=2000, runs=8, optimum=best)

gap = trace["gap"][:, -1]
print(f"best known: {best.value:.4f} at x = {best.x.round(3)}")
print(f"{trace['samples'][0, -1]:,.0f} transitions a run; final gaps: {gap.round(4)}")
assert (gap < 0.05 * abs(best.value)).sum() >= 6
