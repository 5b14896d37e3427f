"""The fuzz targets of native/fuzz, each for a moment: the corpus, then what comes of it.

    native/fuzz/build.sh TARGET -> the target on gcc's AddressSanitizer and UBSan -> the corpus, then mutations

A finding is written to the test's directory and named in its message; it belongs into tests/corpus once it is fixed.
For longer than a moment: native/README.md.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
CORPUS: Final = ROOT / "tests/corpus"
SECONDS: Final = 5.0

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the targets are built with gcc")


def has_sanitizers(folder: Path) -> bool:
    """Debian's gcc brings them; other systems have packages of their own."""
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    argv = ["gcc", "-fsanitize=address,undefined", str(source), "-o", str(folder / "empty")]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("target", ["frame", "wheel", "engine"])
def test_a_fuzz_target_has_no_finding_in_the_corpus_nor_in_what_comes_of_it(target: str, tmp_path: Path) -> None:
    if not has_sanitizers(tmp_path):
        pytest.skip("gcc has no sanitizers here")
    binary = tmp_path / target
    built = subprocess.run([ROOT / "native/fuzz/build.sh", target, binary], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    finding = tmp_path / "finding"
    # Another seed each time: a round in CI is one of many.
    argv = [str(binary), f"-seconds={SECONDS}", f"-seed={time.time_ns() // 1000}"]
    if (CORPUS / target).is_dir():
        argv.append(str(CORPUS / target))
    # The tests themselves may run on sanitized extensions; the target brings its own.
    env = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env={**env, "FUZZ_CRASH": str(finding)}, timeout=SECONDS + 60
    )
    about = f"\n{finding}: {finding.read_bytes().hex()}" if finding.exists() else ""
    assert done.returncode == 0, f"{done.stderr[-4000:]}{about}"
    assert "no finding" in done.stdout
