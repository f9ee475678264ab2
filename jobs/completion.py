"""rdpm completion: a script that lets bash or zsh complete commands, config files, keys and the values of keys."""

import re

from rdpm.pipeline.foundation.config_keys import NAME, Key, keys_of, parsed_configs

JOB = "completion"
_SHELLS = ("bash", "zsh")

_WORDS = """\
# What rdpm takes, as printed by: rdpm completion SHELL. An entry is an option or key=values; * stands for files.
_rdpm_entries() {{
    case "$1" in
{cases}
    esac
}}
"""

_BASH = """
_rdpm() {
    local line="${COMP_LINE:0:COMP_POINT}" entry values
    local word="${line##*[[:space:]]}" entries=()
    compopt -o nospace 2>/dev/null
    if ((COMP_CWORD < 2)); then
        mapfile -t COMPREPLY < <(compgen -S ' ' -W "$(_rdpm_entries '')" -- "$word")
        return
    fi
    read -ra entries <<< "$(_rdpm_entries "${COMP_WORDS[1]}")"
    COMPREPLY=()
    if [[ $word == *=* ]]; then
        local key="${word%%=*}" value="${word#*=}" before=""
        [[ $COMP_WORDBREAKS == *=* ]] || before="$key="
        for entry in "${entries[@]}"; do
            [[ $entry == "$key="* ]] || continue
            values="${entry#*=}"
            if [[ $values == '*' ]]; then
                _rdpm_files "$value" "$before"
            else
                mapfile -t COMPREPLY < <(compgen -P "$before" -S ' ' -W "${values//|/ }" -- "$value")
            fi
        done
        return
    fi
    for entry in "${entries[@]}"; do
        [[ $entry == "$word"* ]] || continue
        if [[ $entry == *=* ]]; then COMPREPLY+=("${entry%%=*}="); else COMPREPLY+=("$entry "); fi
    done
    [[ $word == -* ]] || _rdpm_files "$word" "" yaml
}

_rdpm_files() { # the beginning of a path, what stands before each, and the only suffix of files if there is one
    local path quoted
    while IFS= read -r path; do
        printf -v quoted %q "$path"
        if [[ -d $path ]]; then
            COMPREPLY+=("$2$quoted/")
        elif [[ -z $3 || $path == *.$3 || $path == *.npz ]]; then
            COMPREPLY+=("$2$quoted ")
        fi
    done < <(compgen -f -- "$1")
}

complete -F _rdpm rdpm
"""

_ZSH = """
_rdpm() {
    local entry values
    local -a entries keys options
    if ((CURRENT == 2)); then
        entries=(${=$(_rdpm_entries '')})
        compadd -- $entries
        return
    fi
    entries=(${=$(_rdpm_entries $words[2])})
    if [[ $PREFIX == *=* ]]; then
        entry=${entries[(r)${(b)PREFIX%%=*}=*]}
        values=${entry#*=}
        compset -P '*='
        if [[ $values == '*' ]]; then
            _files
        elif [[ -n $values ]]; then
            compadd -- ${(s:|:)values}
        fi
        return
    fi
    for entry in $entries; do
        if [[ $entry == *=* ]]; then keys+=(${entry%%=*}=); else options+=($entry); fi
    done
    compadd -S '' -- $keys
    compadd -- $options
    [[ $PREFIX == -* ]] || _files -g '*.(yaml|npz)'
}

(($+functions[compdef])) || { autoload -Uz compinit && compinit; }
compdef _rdpm rdpm
"""


def main(arguments: list[str]) -> None:
    """Entry of the subcommand. Raises ValueError for another shell."""
    if len(arguments) != 1 or arguments[0] not in _SHELLS:
        raise ValueError(f"arguments {' '.join(arguments)!r} are not bash or zsh; use: rdpm completion bash")
    print(script(arguments[0]), end="")


def script(shell: str) -> str:
    """The script for a shell; it calls nothing when a user presses Tab, so it is as quick as the shell."""
    from rdpm.jobs.cli import COMMANDS, usage_of  # which imports this module

    cases = {name: _entries(module, usage_of(name)) for name, (module, _) in COMMANDS.items()}
    lines = [f"        {name}) echo '{' '.join(entries)}' ;;" for name, entries in cases.items()]
    lines.append(f"        '') echo '{' '.join([*COMMANDS, 'help'])}' ;;")
    return _WORDS.format(cases="\n".join(lines)) + (_BASH if shell == "bash" else _ZSH)


def _entries(module: str, usage: str) -> list[str]:
    """Options, words and keys of a command."""
    given = re.sub(r"\b[A-Z]+\.?\w*", "", usage)
    words = re.findall(r"(?<![\w=|-])([a-z]+(?:\|[a-z]+)+)(?![\w=])", given)
    keys = {key.name: _values(key) for place in parsed_configs(module) for key in keys_of(*place)}
    named = [f"{name}={values}" for name, values in keys.items() if values is not None and NAME not in name]
    return [*(word for group in words for word in group.split("|")), *re.findall(r"--[a-z]+", usage), "--help", *named]


def _values(key: Key) -> str | None:
    """What completes the value of a key: choices, files, or nothing; None for a group of keys."""
    if not key.kind:
        return None
    return "|".join(key.choices) or ("*" if "text" in key.kind else "")
