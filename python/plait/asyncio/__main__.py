"""``python -m plait.asyncio``: the interactive interpreter on plait's loop; `ps`, `pstree` (3.14)."""

from __future__ import annotations

import asyncio.events
import runpy

from plait.event_loop import EventLoop

if __name__ == "__main__":
    asyncio.new_event_loop = asyncio.events.new_event_loop = EventLoop
    runpy.run_module("asyncio", run_name="__main__", alter_sys=True)
