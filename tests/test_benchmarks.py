"""Every benchmark can be started; what they measure is not tested here."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "__main__" in path.read_text()
]


def test_every_benchmark_shows_its_help() -> None:
    # All in one process: each alone takes seconds to import what it measures.
    code = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv = [name, '--help']\n"
        "    try:\n"
        "        runpy.run_module(f'benchmarks.{name}', run_name='__main__', alter_sys=True)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (name, end.code)\n"
        "    print('shown', name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *NAMES],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line[6:] for line in done.stdout.splitlines() if line.startswith("shown ")] == NAMES
    assert done.stdout.count("usage:") == len(NAMES) > 10
