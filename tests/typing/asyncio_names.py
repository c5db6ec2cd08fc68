"""What `plait.asyncio` promises to type checkers: what asyncio does; checked by mypy, never run."""

from __future__ import annotations

from typing import assert_type

import plait.asyncio as asyncio
import plait.asyncio.events as events
from plait.asyncio import Queue, subprocess
from plait.asyncio.subprocess import PIPE


async def main() -> int:
    queue: asyncio.Queue[int] = asyncio.Queue(maxsize=3)
    await queue.put(1)
    same: Queue[int] = queue
    async with asyncio.Lock(), asyncio.timeout(1), asyncio.Semaphore(2):
        await asyncio.sleep(0)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(same.get())
    assert_type(task.result(), int)
    assert_type(asyncio.subprocess.PIPE, int)
    number, text = await asyncio.gather(asyncio.sleep(0, 1), asyncio.sleep(0, "a"))
    assert_type(number, int)
    assert_type(text, str)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", 1)
    except (OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
        return 0
    assert_type(await reader.read(), bytes)
    writer.close()
    process = await asyncio.create_subprocess_exec("true", stdout=subprocess.PIPE, stdin=PIPE)
    return await process.wait()


assert_type(asyncio.run(main()), int)
assert_type(events.new_event_loop(), asyncio.AbstractEventLoop)
with asyncio.Runner(debug=True) as runner:
    assert_type(runner.run(main()), int)
loop: asyncio.AbstractEventLoop = asyncio.EventLoop()
