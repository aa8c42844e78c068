#!/usr/bin/env bash
# All tests, in three parts: those beside the code; then those that wait or only calculate, beside each other; then those that judge
# times on the LAN of namespaces, one after the other. Those before a real API server spend most of their time waiting for what takes
# its time (Leases that run out, addresses that rest): the simulation and a little fuzzing go on meanwhile, with lower priority. The
# first and the last part have the machine to themselves: of several checkouts on a machine one at a time plays the last part. Ends with
# what was skipped.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Tests (their files' names) that wait most of the time, in groups of which each runs beside the others; that take all the processor
# time there is; and that want a quiet machine. What is in none of these runs beside the first.
waiting=("cluster" "api_faults lab")
busy=(simulation)
quiet=(hostile machine owner scenarios speaker_size)

# Said now, and not when all but the last part has been played.
for program in flock setpriv; do
  command -v "$program" > /dev/null || { echo "$program is missing: make setup installs it (package util-linux)" >&2; exit 1; }
done
cache=${XDG_CACHE_HOME:-$HOME/.cache}/l2lb
if ! mkdir -p "$cache" || ! (: >> "$cache/.quiet.lock"); then
  echo "cannot write to $cache: name another folder in XDG_CACHE_HOME" >&2
  exit 1
fi

logs=$(mktemp -d); trap 'rm -rf "$logs"' EXIT
L2LB_KIT_DIR=$(lab/kit/build.sh) || exit 1
export L2LB_KIT_DIR
start=$SECONDS
# Cargo ends with this script, and a test with its cargo, however either ends; what a test started ends with it.
bound=(setpriv --pdeathsig KILL)
runner=CARGO_TARGET_$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER
export "$runner=${bound[*]}"
tests=("${bound[@]}" cargo test --locked --workspace --no-fail-fast)

"${tests[@]}" --no-run || exit 1
target/debug/lab check --install || exit 1

shopt -s nullglob
others=()
for file in {,lab/}tests/*.rs {,lab/}tests/*/main.rs; do
  name=$(basename "${file%/main.rs}" .rs)
  case " ${waiting[*]} ${busy[*]} ${quiet[*]} ${others[*]} " in *" $name "*) ;; *) others+=("$name") ;; esac
done

result=0
"${tests[@]}" --lib --bins 2>&1 | tee "$logs/units" || result=1

running=()
for group in "${waiting[@]}"; do
  read -ra names <<< "$group"
  "${tests[@]}" "${names[@]/#/--test=}" > "$logs/waiting-${#running[@]}" 2>&1 &
  running+=($!)
done
"${tests[@]}" "${others[@]/#/--test=}" 2>&1 | tee "$logs/others" || result=1
"${tests[@]}" --doc 2>&1 | tee "$logs/doc" || result=1
nice "${tests[@]}" "${busy[@]/#/--test=}" 2>&1 | tee "$logs/busy" || result=1
# A look beyond the kept inputs, the same one each time and on each machine; `make fuzz` finds its own way.
FUZZ_FIXED=1500000 nice "${bound[@]}" scripts/fuzz.sh || result=1
for number in "${!running[@]}"; do
  # What it has said so far, and then what is still to come.
  tail --lines=+1 --follow --pid="${running[number]}" "$logs/waiting-$number"
  wait "${running[number]}" || result=1
done

company=
exec 9>> "$cache/.quiet.lock" || exit 1
if ! flock --nonblock 9; then
  echo "waiting for another checkout to end its tests that want a quiet machine, for an hour at most"
  if ! flock --timeout 3600 9; then
    company="NOT QUIET: another one still held $cache/.quiet.lock after an hour: what wants a quiet machine may have had none"
    echo "$company"
  fi
fi
# The lock is this script's, and ends with it.
"${tests[@]}" "${quiet[@]/#/--test=}" 2>&1 9>&- | tee "$logs/quiet" 9>&- || result=1
exec 9>&-

passed=$(grep -hoE '^test result: .* [0-9]+ passed' "$logs"/* | grep -oE '[0-9]+ passed' | awk '{n += $1} END {print n + 0}')
failed=$(grep -hoE '^test result: .* [0-9]+ failed;' "$logs"/* | grep -oE '[0-9]+ failed' | awk '{n += $1} END {print n + 0}')
skipped=$(cat "$logs"/* | grep -cE '^SKIPPED')
# What failed is said again at the end, in short: that is what is left of a long output.
awk 'FNR == 1 {left = 0} /^---- .* ----$/ {left = 12} /^failures:$/ {left = 0} left > 0 {print substr($0, 1, 500); left--}' "$logs"/*
echo
grep -hE '^PLAYED AGAIN' "$logs"/* | cut -c1-500
grep -hE '^SKIPPED' "$logs"/* || echo "nothing was skipped"
[ -z "$company" ] || echo "$company"
echo "took $((SECONDS - start)) s"
echo "tests: $passed passed, $failed failed, $skipped skipped"
[ "$result" = 0 ] || echo "FAILED: a test, a program of tests or the fuzzing, see above"
exit "$result"
