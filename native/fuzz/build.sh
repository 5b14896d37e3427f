#!/usr/bin/env bash
# Build a fuzz target: native/fuzz/build.sh {frame|wheel|engine} OUTPUT
# With CC=clang it is a libFuzzer target; with gcc (the default) it brings its own driver (standalone.c).
set -euo pipefail
cd "$(dirname "$0")"

target=$1 output=$2
case $target in
frame) sources="../kernel/frame.c ../kernel/mask.c ../kernel/utf8.c" ;;
wheel) sources="../kernel/wheel.c" ;;
engine) sources="../kernel/frame.c ../kernel/mask.c ../kernel/siphash.c ../kernel/utf8.c ../kernel/wheel.c" ;; # includes engine.c, audience.c
*) echo "no such target: $target" >&2; exit 2 ;;
esac
cc=${CC:-gcc}
flags="-std=gnu11 -g -O1 -Wall -Wextra -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -I../include"
if "$cc" --version | grep -q clang; then
    # shellcheck disable=SC2086
    exec "$cc" $flags -fsanitize=fuzzer "$target.c" $sources -o "$output"
fi
driver=$(mktemp --suffix=.o)
trap 'rm -f "$driver"' EXIT
# shellcheck disable=SC2086
"$cc" $flags -c standalone.c -o "$driver"
# shellcheck disable=SC2086
"$cc" $flags -fsanitize-coverage=trace-pc "$target.c" $sources "$driver" -o "$output"
