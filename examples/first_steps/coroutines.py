"""Two coroutines that print, count, sleep and are gathered: `python examples/first_steps/coroutines.py`."""

import asyncio  # or: import plait.asyncio as asyncio
import time


async def work(name: str) -> str:
    """Count to three, then sleep for two seconds."""
    for number in range(1, 4):
        print(f"{name}: {number}")
    await asyncio.sleep(2)
    print(f"{name}: awake")
    return name


async def main() -> None:
    """Wait for both."""
    began = time.perf_counter()
    names = await asyncio.gather(work("Ada"), work("Grace"))
    print(f"both have ended: {names}")
    print(f"seconds: {time.perf_counter() - began:.2f}")


if __name__ == "__main__":
    asyncio.run(main())
