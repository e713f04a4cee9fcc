"""The verbs of the command line, one file each. `bilevel_rl.cli` dispatches to them and imports only the one asked for."""
