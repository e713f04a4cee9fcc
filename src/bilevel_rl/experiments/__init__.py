"""The paper's experiments, one file each: settings, `run()`, and `main(argv)` for the command line."""

# name -> (module with `main(argv) -> int`, what it shows)
ALL: dict[str, tuple[str, str]] = {
    "gridworld": (
        "bilevel_rl.experiments.gridworld",
        "the paper's: a goal on a 10x10 grid, as a position and as a distribution; its algorithm, its baselines, ours",
    ),
    "happy_tweets": (
        "bilevel_rl.experiments.happy_tweets",
        "a tiny language model learns to write happy tweets: bi-level RLHF and its baselines at equal labels and tokens",
    ),
}
