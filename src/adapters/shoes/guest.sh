#!/bin/sh
# Runs the setup script of myshoes in a guest. The script stays until the runner has ended, and
# the vm ends with it.
#
# The script holds the registration token of the runner, so it comes in a variable, which the
# service stores encrypted, and never on a command line.
#
#   125   the script could not be written
#   126   there is no bash in this guest
#   else  the exit code of the script, which is not the result of the job

set +x
script=${MYSHOES_SETUP_SCRIPT:-}
# The job inherits the environment, and it can read the file that it came from.
unset MYSHOES_SETUP_SCRIPT
if [ -w "${MAYFLY_HOME:-/nonexistent}/runner.env" ]; then
    : >"$MAYFLY_HOME/runner.env"
fi

if ! command -v bash >/dev/null 2>&1; then
    echo "mayfly: the setup script of myshoes needs bash, which this guest does not have"
    exit 126
fi
directory=$(mktemp -d)
file=$directory/setup.sh
if [ -z "$directory" ] || ! (umask 077 && printf '%s\n' "$script" >"$file"); then
    echo "mayfly: the setup script of myshoes cannot be written to ${TMPDIR:-/tmp}"
    exit 125
fi
unset script
bash "$file"
code=$?
rm -rf "$directory"
if [ "$code" -ne 0 ]; then
    echo "mayfly: the setup script of myshoes returned $code"
fi
exit "$code"
