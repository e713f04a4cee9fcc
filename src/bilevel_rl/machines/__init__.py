"""Where work is done: here, on a Ray cluster, on SLURM. Work is a folder and the words that fill it.

`job` says what a piece of work is and does it in a process of this machine; `pool` gives jobs to workers and tries a dead
one once more; `ray` and `slurm` are workers elsewhere; `files` carries folders between machines that share no disk, `store`
to folders that are on no disk. `where` has the options of verbs. Nothing here knows what is computed.
"""
