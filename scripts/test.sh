#!/usr/bin/env bash
# All tests: unit, property and simulation first, then the LAN of namespaces and the real API server, then a little fuzzing. Ends with
# what was skipped.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
log=$(mktemp); trap 'rm -f "$log"' EXIT
L2LB_KIT_DIR=$(lab/kit/build.sh) || exit 1
export L2LB_KIT_DIR
start=$SECONDS

cargo test --locked --workspace --no-fail-fast 2>&1 | tee "$log"
result=${PIPESTATUS[0]}
# A look beyond the kept inputs, the same one each time and on each machine; `make fuzz` finds its own way.
FUZZ_FIXED=1500000 scripts/fuzz.sh || result=1

passed=$(grep -oE '^test result: .* [0-9]+ passed' "$log" | grep -oE '[0-9]+ passed' | awk '{n += $1} END {print n + 0}')
failed=$(grep -oE '[0-9]+ failed;' "$log" | awk '{n += $1} END {print n + 0}')
skipped=$(grep -cE '^SKIPPED' "$log")
echo
grep -E '^SKIPPED' "$log" || echo "nothing was skipped"
echo "took $((SECONDS - start)) s"
echo "tests: $passed passed, $failed failed, $skipped skipped"
exit "$result"
