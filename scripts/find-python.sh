#!/bin/sh
# Print the command of a Python 3.11, 3.12 or 3.13 that can make virtual environments.
#
#     sh scripts/find-python.sh
#
# PYTHON=COMMAND names one; otherwise the first that fits on PATH is taken. Exits with 1 and one line if none fits.
set -u

fail() {
    echo "setup: $*" >&2
    exit 1
}

# Commands that exist may still fail: pyenv's shims, for example, or the Microsoft Store's aliases.
version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

unfit=
without_venv=
if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3.13 python3.12 python3.11 python3 python; fi
for python in "$@"; do
    case $(version "$python") in
        3.11.* | 3.12.* | 3.13.*)
            if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
                echo "$python"
                exit
            fi
            without_venv=${without_venv:-$python}
            ;;
        ?*) unfit="${unfit:+$unfit, }$python is $(version "$python")" ;;
    esac
done

if [ -n "$without_venv" ]; then
    minor=$(version "$without_venv" | cut -d . -f 2)
    fail "$without_venv lacks the venv module (ensurepip); Debian and Ubuntu: apt-get install python3.$minor-venv"
fi
[ -z "${PYTHON:-}" ] || fail "PYTHON must name Python 3.11, 3.12 or 3.13, but ${unfit:-$PYTHON does not run}"
fail "no Python 3.11, 3.12 or 3.13 on PATH${unfit:+ ($unfit)}; install one, or set PYTHON=/path/to/python"
