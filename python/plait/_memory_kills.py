"""Whether the system's out-of-memory killer has ended a process of this group: what the kernel counts."""

from __future__ import annotations

import threading
from pathlib import Path

__all__ = ["MemoryKills", "memory_kills"]


class MemoryKills:
    """Counts the processes that the out-of-memory killer has ended in the control group of this process.

    The kernel counts before it kills, so a process that is found dead by SIGKILL while the count has grown
    was (but for a coincidence within the group) ended that way. Thread-safe.

    Args:
        root: where the system's files are.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._seen: int | None = None
        self._file: Path | None = None

    def watch(self) -> None:
        """Begin to count, if nobody has."""
        with self._lock:
            if self._seen is None:
                self._file = next(filter(lambda file: _count(file) is not None, self._files()), None)
                self._seen = self._count()

    def is_new(self) -> bool:
        """Whether there is one that nobody was told of; that one is told now."""
        with self._lock:
            if self._seen is None or self._count() <= self._seen:
                return False
            self._seen += 1
            return True

    def _count(self) -> int:
        return (_count(self._file) if self._file is not None else None) or 0

    def _files(self) -> list[Path]:
        """Where the count may be: of the own group (version 2, then 1), else of the whole machine."""
        groups = self._root / "sys/fs/cgroup"
        files = []
        for line in _read(self._root / "proc/self/cgroup").splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            if controllers == "":
                files.append(groups / path.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                files.append(groups / "memory" / path.lstrip("/") / "memory.oom_control")
        # In a container the own group may be mounted as if it were the root.
        files += [groups / "memory.events", groups / "memory/memory.oom_control"]
        return [*files, self._root / "proc/vmstat"]


def _count(file: Path) -> int | None:
    for line in _read(file).splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill" and value.strip().isdigit():
            return int(value)
    return None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


memory_kills = MemoryKills()
"""Those of this process's group."""
