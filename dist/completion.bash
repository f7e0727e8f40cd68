# SPDX-License-Identifier: Apache-2.0
# Completion of tidemark, and of the links to it by the names of QEMU's tools, for bash. What can be
# completed is read from --help, so that the two agree.

# Names of commands or sub-commands: the words with an indentation of two in a help text.
_tidemark_names() {
    "$@" --help 2>/dev/null | sed -n '/^commands:/,/^$/s/^  \([a-z][a-z-]\+\)  *[^ ].*/\1/p'
}

_tidemark_options() {
    "$@" --help 2>/dev/null | grep -E '^ +-' | grep -oE -- '(^ +|, )--?[a-zA-Z][a-z0-9-]*' | tr -d ' ,'
}

_tidemark() {
    local word=${COMP_WORDS[COMP_CWORD]} first=1 command=("${COMP_WORDS[0]}")
    COMPREPLY=()
    case ${command[0]##*/} in
    qemu-*) ;;
    *)
        if [ "$COMP_CWORD" -eq 1 ]; then
            COMPREPLY=($(compgen -W "$(_tidemark_names "${command[@]}") --help --version" -- "$word"))
            return
        fi
        command+=("${COMP_WORDS[1]}")
        first=2
        ;;
    esac
    case "${command[*]##*/}" in
    *img)
        if [ "$COMP_CWORD" -eq $first ]; then
            COMPREPLY=($(compgen -W "$(_tidemark_names "${command[@]}") --help --version" -- "$word"))
            return
        fi
        command+=("${COMP_WORDS[first]}")
        ;;
    esac
    if [[ $word == -* ]]; then
        COMPREPLY=($(compgen -W "$(_tidemark_options "${command[@]}")" -- "$word"))
    fi
}

complete -o default -F _tidemark "$(x=${BASH_SOURCE[0]##*/} && [[ $x == qemu-* ]] && echo "$x" || echo tidemark)"
