"""Completion for bash: subcommands of dist-ssl, and after `run` and `plan` the groups and keys of a config.

Examples:

    eval "$(python launch/completion.py bash)"                # in this shell; in ~/.bashrc: in every one
    python launch/completion.py bash > FILE                   # a FILE that bash-completion loads, or that you source

The printed lines name the choices that there are now, so completing starts no Python. Elsewhere files are completed.
"""

import re
import sys

from rich.console import Console

from dist_ssl.config.command import run_command
from dist_ssl.config.command_names import PROGRAM
from dist_ssl.errors import ConfigError
from launch.config_groups import config_groups, run_keys
from launch.launch_keys import OF_A_RUN
from launch.run_dir import PROJECT
from launch.subcommands import SUBCOMMANDS

PLAIN = re.compile(r"\+?[\w./-]+=?[\w.+-]*", re.ASCII)
"""Words that bash takes as they are: it would execute a file name like `$(command)`, in what `compgen -W` reads too."""
BASH = """\
_dist_ssl() {{
    local word=${{COMP_LINE:0:COMP_POINT}} words='{subcommands}'
    word=${{word##* }}
    case $COMP_CWORD:${{COMP_WORDS[1]}} in
        1:*) ;;
        *:run | *:plan) words='{keys}' ;;
        *) return ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    if [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *= ]]; then compopt -o nospace 2>/dev/null; fi
    if [[ $word == *=* && $COMP_WORDBREAKS == *=* ]]; then COMPREPLY=("${{COMPREPLY[@]#*=}}"); fi
}}
complete -o default -F _dist_ssl {program}
"""


def bash() -> str:
    """Return the lines that complete words in bash, without files of configs/ that have characters of a shell."""
    configs = PROJECT / "configs"
    keys = [f"{group}={choice}" for group, choices in config_groups(configs).items() for choice in choices]
    own = [f"{key}=" for key in run_keys(configs)]
    keys += [*own, *(key for key in OF_A_RUN if key not in own)]
    return BASH.format(subcommands=" ".join(SUBCOMMANDS), keys=" ".join(filter(PLAIN.fullmatch, keys)), program=PROGRAM)


def run(arguments: list[str], _console: Console) -> int:
    """Print the completion of a shell; return 0. Raises ConfigError."""
    if arguments != ["bash"]:
        given = " ".join(arguments) or "Nothing"
        raise ConfigError(f"{given} is no shell that can be completed here.", "Write bash.")
    sys.stdout.write(bash())  # as it is: a shell reads it
    return 0


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit code."""
    return run_command(run, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
