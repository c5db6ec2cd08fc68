"""Weakens the orderings of the lock-free parts one by one; loom must notice each: `make loom-mutants`.

A test that passes with a weaker ordering than the code has does not test that ordering. Each mutant is a
copy of `crates/sync` under `target/`, changed in one place; the loom tests named with it must fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "loom-mutants"


class Mutant(NamedTuple):
    """One change: `what` in the file is replaced by `instead`, where it stands for the `at`-th time."""

    file: str
    test: str
    what: str
    instead: str
    at: int = 0


RING, WINDOW, BELL, WAIT_QUEUE = "ring.rs", "window.rs", "bell.rs", "wait_queue.rs"
OWNED_LOCK, LOG, GATE = "owned_lock.rs", "log.rs", "gate.rs"
SEMAPHORE, EVENT, BARRIER = "semaphore.rs", "event.rs", "barrier.rs"
QUEUE, LINE = "queue/mod.rs", "queue/line.rs"
RELEASE, ACQUIRE, RELAXED = "Ordering::Release", "Ordering::Acquire", "Ordering::Relaxed"
EXCHANGE = f"Ordering::AcqRel,\n                {ACQUIRE},"
FENCE = "        fence(Ordering::SeqCst);\n"


def weaker(file: str, what: str, strong: str) -> Mutant:
    """A store or load that is relaxed."""
    return Mutant(file, f"loom_{Path(file).stem}", what + strong, what + RELAXED)


MUTANTS = [
    weaker(OWNED_LOCK, ".compare_exchange(FREE, taken, ", ACQUIRE),
    weaker(OWNED_LOCK, ".compare_exchange(seen, FREE, ", RELEASE),
    weaker(LOG, "header.tail.store(next, ", RELEASE),
    weaker(LOG, "let tail = header.tail.load(", ACQUIRE),
    weaker(LOG, "header.freed.store(head, ", RELEASE),
    weaker(LOG, "let freed = header.freed.load(", ACQUIRE),
    # A sleeper's announcement before its second look; what was published before the gate is looked at.
    Mutant(GATE, "loom_gate", FENCE, ""),
    Mutant(GATE, "loom_gate", FENCE, "", 1),
    weaker(RING, "tail.store(self.tail, ", RELEASE),
    weaker(RING, "head.store(self.head, ", RELEASE),
    weaker(RING, "head.load(", ACQUIRE),
    weaker(RING, "let tail = self.ring.header().tail.load(", ACQUIRE),
    weaker(WINDOW, ".store(self.number.wrapping_add(1), ", RELEASE),
    weaker(WINDOW, "consumed.load(", ACQUIRE),
    # Publishing and taking back; claiming.
    Mutant(WINDOW, "loom_window", EXCHANGE, EXCHANGE.replace("AcqRel", "Relaxed").replace(ACQUIRE, RELAXED)),
    Mutant(
        WINDOW, "loom_window", EXCHANGE, EXCHANGE.replace("AcqRel", "Relaxed").replace(ACQUIRE, RELAXED), 1
    ),
    # The announcement of a sleeper before its second look; what the ringer published before it looks.
    Mutant(BELL, "loom_ring", FENCE, ""),
    Mutant(BELL, "loom_ring", FENCE, "", 1),
    # A waiter's value, published by the grant; and what was done before it.
    weaker(WAIT_QUEUE, "(WAITING, GRANTED, ", RELEASE),
    weaker(WAIT_QUEUE, "(GRANTED, GONE, ", ACQUIRE),
    weaker(WAIT_QUEUE, "self.state.load(", ACQUIRE),
    # The locks: what was done before an event was set; who is called, and what is given back.
    Mutant(EVENT, "loom_locks", f"store(true, {RELEASE})", f"store(true, {RELAXED})"),
    Mutant(EVENT, "loom_locks", f"flag.load({ACQUIRE})", f"flag.load({RELAXED})"),
    Mutant(EVENT, "loom_locks", f"if self.flag.load({ACQUIRE})", "if false"),
    Mutant(SEMAPHORE, "loom_locks", "while self.turns < self.free", "while self.turns + 1 < self.free"),
    Mutant(SEMAPHORE, "loom_locks", "if first.was_overtaken()", "if false"),
    Mutant(SEMAPHORE, "loom_locks", "state.take_back(Grant::Turn);", ""),
    Mutant(SEMAPHORE, "loom_locks", "state.take_back(Grant::Turn);", "", 1),
    Mutant(BARRIER, "loom_locks", "state.shut && state.waiters.contains(waiter)", "false"),
    # The queues: who is called, and what those who give up give back.
    Mutant(QUEUE, "loom_queue", "if !state.getters.is_empty() {", "if false {"),
    Mutant(QUEUE, "loom_queue", "if !state.putters.is_empty() ||", "if"),
    Mutant(QUEUE, "loom_queue", " || (state.is_shut && !state.getters.is_empty())", ""),
    Mutant(QUEUE, "loom_queue", "        if self.items.is_empty() {\n", "        if false {\n"),
    Mutant(QUEUE, "loom_queue", "state.getters.give_back(grant);\n            let mut", "let mut"),
    Mutant(LINE, "loom_queue", "self.turns = self.turns.saturating_sub(1)", "{}"),
]


def replaced(text: str, mutant: Mutant) -> str:
    """The text with one place changed; raises ValueError if there is no such place."""
    start = -1
    for _ in range(mutant.at + 1):
        start = text.index(mutant.what, start + 1)
    return text[:start] + mutant.instead + text[start + len(mutant.what) :]


def passes(crate: Path, test: str) -> bool:
    """Whether the loom tests of one file pass for this copy of the crate."""
    environment = os.environ | {
        "RUSTFLAGS": "--cfg plait_loom",
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
        "CARGO_PROFILE_RELEASE_DEBUG": "0",
        # A lost wake-up that loom takes for a spinning thread would otherwise be searched for without end.
        "LOOM_MAX_BRANCHES": "10000",
    }
    command = ["cargo", "test", "--quiet", "--release", "--package", "plait-sync", "--test", test]
    command += ["--target-dir", str(WORK / "target")]
    built = subprocess.run([*command, "--no-run"], cwd=crate, env=environment, capture_output=True, text=True)
    if built.returncode:
        sys.exit(f"the mutant does not compile:\n{built.stderr}")
    return subprocess.run(command, cwd=crate, env=environment, capture_output=True).returncode == 0


def main() -> None:
    """Try every mutant; exit with status 1 if one survives."""
    copy = WORK / "workspace"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(ROOT / "crates", copy / "crates", ignore=shutil.ignore_patterns("target"))
    for name in ("Cargo.toml", "Cargo.lock"):
        shutil.copy(ROOT / name, copy)
    sources = copy / "crates" / "sync" / "src"
    survivors = []
    for test in sorted({mutant.test for mutant in MUTANTS}):
        if not passes(copy, test):
            sys.exit(f"{test} fails as it is: mend that first")
    for number, mutant in enumerate(MUTANTS, 1):
        path = sources / mutant.file
        original = path.read_text()
        try:
            path.write_text(replaced(original, mutant))
        except ValueError:
            sys.exit(f"{mutant.file} does not hold what mutant {number} changes: {mutant.what!r}")
        survives = passes(copy, mutant.test)
        path.write_text(original)
        line = " ".join(mutant.what.split())
        print(f"{'SURVIVES' if survives else 'caught':8}  {mutant.file}: {line} ({mutant.at})", flush=True)
        if survives:
            survivors.append(mutant)
    if survivors:
        sys.exit(f"{len(survivors)} of {len(MUTANTS)} mutants survive: a loom test is missing for each")
    print(f"all {len(MUTANTS)} mutants are caught")


if __name__ == "__main__":
    main()
