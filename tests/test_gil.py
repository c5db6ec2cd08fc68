"""`plait.gil`: who holds the GIL, how long others wait, and what turned it on."""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
import threading
import time
from types import ModuleType
from typing import Any

import pytest

from plait import gil


def test_a_program_that_sleeps_does_not_hold_it() -> None:
    with gil.Watch(0.002) as watch:
        time.sleep(0.3)
    seen = watch.contention()
    assert seen.asks >= 20
    assert seen.held < 0.7  # other programs may keep the watch itself waiting
    assert seen.enabled
    assert seen.turned_on_by is None
    assert seen.seconds >= 0.3


def test_a_thread_that_computes_holds_it() -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        seen = gil.contention(0.5)
    finally:
        stop.set()
        thread.join()
    assert seen.held > 0.5
    assert seen.longest_wait >= seen.mean_wait > 1e-3
    assert "the GIL is held" in str(seen)


def test_a_watch_can_be_stopped_read_and_started_again() -> None:
    watch = gil.Watch(0.001)
    with pytest.raises(RuntimeError, match="not started"):
        watch.contention()
    watch.start()
    watch.start()
    while watch.contention().asks < 5:
        time.sleep(0.001)
    watch.stop()
    watch.stop()
    asks = watch.contention().asks
    time.sleep(0.02)
    assert watch.contention().asks == asks
    watch.start()
    assert watch.contention().asks <= asks
    watch.stop()


@pytest.mark.parametrize("number", [0, -1, float("nan"), float("inf")])
def test_what_makes_no_sense_is_refused(number: float) -> None:
    if number == float("inf"):
        with pytest.raises(ValueError, match="interval"):
            gil.Watch(number).start()
        return
    with pytest.raises(ValueError, match="interval must be"):
        gil.Watch(number)
    with pytest.raises(ValueError, match="seconds must be"):
        gil.contention(number)


def test_a_program_may_end_or_fork_while_it_is_watched() -> None:
    code = """
import os, time, warnings
warnings.simplefilter("ignore")
from plait import gil
watch = gil.Watch(0.001)
watch.start()
time.sleep(0.02)
pid = os.fork()
if pid == 0:
    watch.stop()
    watch.start()
    time.sleep(0.05)
    assert watch.contention().asks > 0
else:
    assert os.waitpid(pid, 0)[1] == 0
"""
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_the_import_that_turned_it_on_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a free-threaded build: a loader of extension modules, one of which turns the GIL on."""
    on = False
    monkeypatch.setattr(gil, "_IS_FREE_THREADED", True)
    monkeypatch.setattr(gil, "_culprit", None)
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: on, raising=False)

    class Loader(importlib.machinery.ExtensionFileLoader):
        def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
            nonlocal on
            on |= spec.name == "old"
            return ModuleType(spec.name)

        def exec_module(self, module: Any) -> None:
            pass

    gil._note_culprit(Loader)
    for name in ("new", "old", "later"):
        loader = Loader(name, os.devnull)
        module = loader.create_module(importlib.machinery.ModuleSpec(name, loader))
        loader.exec_module(module)
        assert gil.is_enabled() is (name != "new")
        assert gil.turned_on_by() == (None if name == "new" else "the import of 'old'")
    assert "turned on by the import of 'old'" in str(gil.Contention(True, 0, 0, 0, 1, 1, gil.turned_on_by()))
    on = False
    assert "no GIL" in str(gil.Contention(gil.is_enabled(), 0, 0, 0, 1, 1, gil.turned_on_by()))
