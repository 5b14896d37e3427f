#!/usr/bin/env bash
# The tests on extensions built with AddressSanitizer and UndefinedBehaviorSanitizer:
#
#     PYTHON=.venv/bin/python native/sanitize.sh [PYTEST ARGUMENTS]      without arguments: the whole everyday suite
#
# Works on a copy of the repository in a temporary directory, so that the installed package is not touched; $PYTHON (or
# `python3`) brings the dependencies. Servers that tests start are children of the same environment and run the same
# build. Any finding ends its process at once, and with it the test.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(realpath -s "$(command -v "${PYTHON:-python3}")")
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
cp -r --parents fastpresence native tests bench docs pyproject.toml README.md LICENSE CHANGELOG.md "$place"
find "$place" -name '*.so' -delete
cd "$place"

export CFLAGS="-g -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
export LDFLAGS="-fsanitize=address,undefined"
"$python" -c "
import tomllib, setuptools
setuptools.setup(script_args=['-q', 'build_ext', '--inplace', '-j4'])
" >build.log 2>&1 || { cat build.log >&2; exit 1; }
unset CFLAGS LDFLAGS

# The copy comes before the installed package, here and in children, whatever directory they run in.
export PYTHONPATH=$place PYTHONDONTWRITEBYTECODE=1
# pymalloc would hide overruns in blocks of its own.
export PYTHONMALLOC=malloc
# detect_leaks=0: an interpreter keeps what it has until its end, and LeakSanitizer would name all of it; our own memory
# is counted by the engine's `stats()`, by the fuzz targets, where leaks are detected, and by tests/leak.
export ASAN_OPTIONS=detect_leaks=0:halt_on_error=1:abort_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=halt_on_error=1:abort_on_error=1:print_stacktrace=1
# libstdc++ beside it, or exceptions of C++ extensions among the dependencies would end the process.
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so.6)"
"$python" - <<'CHECK'
import fastpresence._native.engine as engine
with open("/proc/self/maps") as maps:
    assert any(engine.__file__ in line for line in maps)
assert engine.__file__.startswith(__import__("os").environ["PYTHONPATH"]), engine.__file__
CHECK
"$python" -m pytest -q -p no:cacheprovider -m "not long" "$@"
