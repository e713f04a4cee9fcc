"""The verbs of the command line, one file each. `bilevel_rl.cli` dispatches to them and imports only the one asked for."""

from __future__ import annotations

# verb -> (module with `main(argv) -> int`, what it does)
VERBS: dict[str, tuple[str, str]] = {
    "list": ("bilevel_rl.commands.list", "problems, solvers and experiments, with what each is"),
    "run": ("bilevel_rl.commands.run", "a solver on a problem; many seeds at once"),
    "resume": ("bilevel_rl.commands.resume", "go on with a run that was stopped, to the same bits"),
    "check": (
        "bilevel_rl.commands.check",
        "is a problem well posed? shapes, derivatives, projection, objective",
    ),
    "plan": ("bilevel_rl.commands.plan", "propose the five sequences from measured gradients and noise"),
    "sweep": ("bilevel_rl.commands.sweep", "tune a solver under a sample budget, in one compiled program"),
    "search": ("bilevel_rl.commands.search", "many starts, the poor ones given up early, under one budget"),
    "diagnose": ("bilevel_rl.commands.diagnose", "gradient dominance, bias in w and tau, measured rate"),
    "compare": ("bilevel_rl.commands.compare", "several solvers on one problem at equal samples"),
    "report": ("bilevel_rl.commands.report", "one self-contained HTML page from run folders"),
    "experiments": ("bilevel_rl.commands.experiments", "the paper's experiments, whole: runs, table, report"),
    "bench": ("bilevel_rl.commands.bench", "the speed and quality benchmarks of a source checkout"),
    "completion": ("bilevel_rl.commands.completion", "a script for your shell: completes verbs, problems and solvers"),
    "cite": ("bilevel_rl.commands.cite", "BibTeX of a problem, a solver or a run folder"),
    "offline": ("bilevel_rl.commands.offline", "stored data: make, check, show; train and compare learners on them"),
    "flows": ("bilevel_rl.commands.flows", "velocity networks: train one on a reward, or on two levels"),
    "llm": ("bilevel_rl.commands.llm", "language models: happy-tweets, train, resume, sample, export, judge"),
}
