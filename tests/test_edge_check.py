"""A neighbour that the list lacks is found out without the list, and named."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hienet.build import find_toolchain


def test_every_edge_that_is_taken_away_is_found(tmp_path):
    """tests/check_edge_check.cpp, which says what is wrong."""
    tools = find_toolchain()
    here = Path(__file__).parent
    program = tmp_path / "check"
    command = [str(tools.compiler), "-std=c++20", "-O1", f"-I{tools.sources}", str(here / "check_edge_check.cpp")]
    command += [str(tools.sources / "engine/edge_check.cpp"), "-o", str(program)]
    subprocess.run(command, check=True, timeout=300)
    answer = subprocess.run([program], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout
    assert answer.stdout.endswith("0 wrong\n")
