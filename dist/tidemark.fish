# SPDX-License-Identifier: Apache-2.0
# Completion of tidemark for fish. What can be completed is read from --help, so that the two agree.

# Commands or sub-commands with their descriptions: the lines with an indentation of two.
function __tidemark_names
    command $argv --help 2>/dev/null |
        sed -n '/^commands:/,/^$/s/^  \([a-z][a-z-]*\)  *\([^ ].*\)/\1\t\2/p'
end

function __tidemark_options
    command $argv --help 2>/dev/null | grep -E '^ +-' |
        grep -oE -- '(^ +|, )--?[a-zA-Z][a-z0-9-]*' | tr -d ' ,'
end

# The words before the cursor, the program among them.
function __tidemark_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    if test (count $words) -eq 1
        __tidemark_names $words[1]
        return
    end
    set -l program $words[1..2]
    if test $words[2] = img
        if test (count $words) -eq 2
            __tidemark_names $program
            return
        end
        set program $words[1..3]
    end
    if string match -q -- '-*' $current
        __tidemark_options $program
    else
        __fish_complete_path $current
    end
end

complete -c tidemark -f -a '(__tidemark_complete)'
