"""Random connections on the event loop, every byte looked at: `benches/event_loop_soak.py`, in small."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[1] / "benches" / "event_loop_soak.py"


def test_no_byte_on_the_wrong_connection_and_nothing_left() -> None:
    # Two short halves: the memory of the first may not be all that a program of this kind uses, but nearly.
    command = [
        sys.executable,
        str(PROGRAM),
        "--seconds=4",
        "--most-memory=1.3",
        f"--seed={random.randrange(2**32)}",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert "connections" in run.stdout
