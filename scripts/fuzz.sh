#!/usr/bin/env bash
# Fuzzes each target (or those named) for FUZZ_SECONDS (60), beginning from the committed inputs. Works with the stable
# toolchain: the flags are those of `cargo fuzz run --sanitizer none`. New inputs stay in the cache; what breaks a promise is written to
# fuzz/regressions, where it is to be committed with the cure. FUZZ_MERGE=1 puts what is worth keeping into fuzz/corpus.
# FUZZ_FIXED=<number> plays so many inputs for each target without the fuzzer: always the same ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../fuzz"
seconds=${FUZZ_SECONDS:-60}
cache=${XDG_CACHE_HOME:-$HOME/.cache}/l2lb
export CARGO_TARGET_DIR=${FUZZ_TARGET_DIR:-$cache/fuzz-target}
# All checkouts build there, and each runs its own copies: the programs of one have the names of another's.
copies=$PWD/../target/fuzz

build() { # build <where cargo puts the programs> <program>... -- <what to tell cargo>
  local from=$CARGO_TARGET_DIR/$1 programs=(); shift
  while [ "$1" != -- ]; do programs+=("$from/$1"); shift; done; shift
  mkdir -p "$cache" "$copies"
  exec 9> "$cache/.fuzz-target.lock"
  flock --nonblock 9 || { echo "waiting for another checkout, which builds its fuzzing" >&2; flock --timeout 3600 9; } ||
    { echo "another checkout has built its fuzzing for an hour; not waited for any longer" >&2; exit 1; }
  # The lock is this script's: a compiler that is left behind does not hold it.
  setpriv --pdeathsig KILL cargo build --locked --quiet --release "$@" 9>&-
  cp --remove-destination "${programs[@]}" "$copies"
  exec 9>&-
}

if [ -n "${FUZZ_FIXED:-}" ]; then
  build release fixed -- --package l2lb-fixed
  exec "$copies/fixed" "$FUZZ_FIXED" "$@"
fi
triple=$(rustc -vV | sed -n 's/^host: //p')
export RUSTFLAGS="--cfg fuzzing -Cdebug-assertions -Ccodegen-units=1 -Cpasses=sancov-module \
  -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
  -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
  -Cllvm-args=-simplifycfg-branch-fold-threshold=0"

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(filter frame owner station)
build "$triple/release" "${targets[@]}" -- --bins --target "$triple"
for target in "${targets[@]}"; do
  program=$copies/$target
  found=$cache/fuzz-corpus/$target
  mkdir -p "$found" "corpus/$target" "regressions/$target"
  log=$(mktemp)
  if ! "$program" -max_total_time="$seconds" -max_len=2048 -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 \
    -artifact_prefix="regressions/$target/" "$found" "corpus/$target" "regressions/$target" > "$log" 2>&1; then
    tail -n 40 "$log"; rm -f "$log"
    echo "fuzzing $target found an input that breaks a promise: it is in fuzz/regressions/$target" >&2
    exit 1
  fi
  echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, none breaks a promise"
  rm -f "$log"
  if [ -n "${FUZZ_MERGE:-}" ]; then
    kept=$(mktemp -d)
    "$program" -merge=1 -max_len=2048 "$kept" "corpus/$target" "$found" > /dev/null 2>&1
    rm -rf "corpus/$target"; mv "$kept" "corpus/$target"; chmod 755 "corpus/$target"
    echo "$target: $(find "corpus/$target" -type f | wc -l) inputs are worth keeping"
  fi
done
