#!/usr/bin/env bash
# tests/step.sh WHAT COMMAND...: runs the command and shows WHAT and its seconds; what the command itself
# prints is shown where it fails. On a terminal the seconds count up, elsewhere a line comes every
# half a minute.
set -uo pipefail
what=$1
shift
log=$(mktemp)
begun=$SECONDS

count() {
    while sleep 1; do
        now=$((SECONDS - begun))
        if [ -t 1 ]; then
            printf '\r   %4d s  %s ...' "$now" "$what"
        elif [ $((now % 30)) = 0 ]; then
            printf '   %4d s  %s ...\n' "$now" "$what"
        fi
    done
}

[ -t 1 ] || printf '           %s\n' "$what"
count &
counter=$!
trap 'kill "$counter" 2>/dev/null; rm -f "$log"' EXIT
"$@" >"$log" 2>&1
status=$?
kill "$counter" 2>/dev/null
[ ! -t 1 ] || printf '\r'
end='    ' # over the dots
[ $status = 0 ] || end=': failed'
printf '   %4d s  %s%s\n' $((SECONDS - begun)) "$what" "$end"
[ $status = 0 ] || cat "$log" >&2
exit $status
