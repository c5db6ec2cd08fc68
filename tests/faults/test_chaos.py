"""All kinds of faults at once, at random, over all kinds of tasks: `benches/faults.py`, on a small scale."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "benches" / "faults.py"


def test_each_of_many_faults_costs_what_it_may_cost(seed: int) -> None:
    command = [sys.executable, str(PROGRAM), "--tasks=2000", "--faults=200", f"--seed={seed}"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert "each cost what it may cost, and nothing is left" in run.stdout
