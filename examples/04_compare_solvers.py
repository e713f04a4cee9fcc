"""Several solvers at an equal number of samples, with intervals over seeds."""

from bilevel_rl import statistics
from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.finite.solvers import CoupledPenalty, PartialSGD, PenaltyActorCritic

BUDGET, RUNS = 30_000, 8
problem = GoalPlacement()
best = oracles.brute_force(problem, tau=problem.temperature())

finals = {}
for solver in (CoupledPenalty(), PenaltyActorCritic(chains=16, common_noise=True), PartialSGD(chains=16)):
    probe = solve(problem, solver, iterations=4, record_every=4, evaluate=False)
    iterations = int(BUDGET // (probe["samples"][0, -1] / 4))
    trace = solve(problem, solver, iterations=iterations, runs=RUNS, optimum=best, record_every=iterations)
    finals[solver.name] = trace["gap"][:, -1]
    print(f"{solver.name:<22} gap {statistics.bootstrap(finals[solver.name])}   at {trace['samples'][0, -1]:,.0f} samples")

ours, papers = finals["coupled_penalty"], finals["penalty_actor_critic"]
better = statistics.probability_of_improvement(ours, papers)
print(f"probability that a run of coupled_penalty beats one of penalty_actor_critic: {better:.2f}")
assert better > 0.8
