"""The table: every solver on every task at equal samples, one cell a process, resumable; and how cost grows with size.

`tasks` says what is solved and on which budget, `methods` with what and over which settings, `cell` how one pair is tuned,
run and graded, `work` is the process that does it (`bilevel_rl.machines` says where), `suite` and `scaling` are the
commands.
"""
