"""`bilevel-rl completion SHELL`: a script that completes verbs, problems and solvers."""

from __future__ import annotations

from collections.abc import Sequence

from bilevel_rl.errors import InvalidConfig, did_you_mean, message

USAGE = """usage: bilevel-rl completion bash | zsh | fish

  bash:  bilevel-rl completion bash >> ~/.bashrc
  zsh:   bilevel-rl completion zsh >> ~/.zshrc
  fish:  bilevel-rl completion fish > ~/.config/fish/completions/bilevel-rl.fish"""

BASH = """_bilevel_rl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then COMPREPLY=($(compgen -W "{verbs}" -- "$word")); return; fi
  case "${{COMP_WORDS[1]}}:$COMP_CWORD" in
{cases}
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _bilevel_rl bilevel-rl
"""


def main(argv: Sequence[str]) -> int:
    """Print the script."""
    if not argv or set(argv) & {"-h", "--help"}:
        print(USAGE)
        return 0
    if len(argv) != 1 or argv[0] not in ("bash", "zsh", "fish"):
        raise InvalidConfig(
            message("bilevel-rl completion", repr(" ".join(argv)), did_you_mean(argv[0], ("bash", "zsh", "fish")), USAGE)
        )
    print(script(argv[0]), end="")
    return 0


def script(shell: str) -> str:
    """The script of a shell."""
    from bilevel_rl import experiments
    from bilevel_rl.commands import VERBS
    from bilevel_rl.launch import index

    problems, solvers = (
        " ".join(index.entries(group) | index.entries(group, "control")) for group in ("problems", "solvers")
    )
    words = {(verb, 2): problems for verb in ("run", "check", "plan", "sweep", "search", "diagnose", "compare")}
    words |= {(verb, 3): solvers for verb in ("run", "check", "plan", "sweep", "search", "diagnose")}
    words |= {("list", 2): "problems solvers experiments", ("experiments", 2): " ".join(experiments.ALL)}
    words |= {("completion", 2): "bash zsh fish", ("cite", 2): f"{problems} {solvers}"}
    if shell == "fish":
        lines = ["complete -c bilevel-rl -n __fish_use_subcommand -f -a '" + " ".join(VERBS) + "'"]
        for (verb, place), names in words.items():
            here = f"__fish_seen_subcommand_from {verb}; and test (count (commandline -opc)) -eq {place}"
            lines.append(f"complete -c bilevel-rl -n '{here}' -a '{names}'")
        return "\n".join(lines) + "\n"
    cases = "\n".join(
        f'    {verb}:{place}) COMPREPLY=($(compgen -W "{names}" -- "$word") $(compgen -f -- "$word")) ;;'
        for (verb, place), names in words.items()
    )
    text = BASH.format(verbs=" ".join(VERBS), cases=cases)
    return text if shell == "bash" else "autoload -U +X bashcompinit && bashcompinit\n" + text
