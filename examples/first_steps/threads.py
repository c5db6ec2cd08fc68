"""Two threads that print, count, sleep and are joined: `python examples/first_steps/threads.py`."""

import threading  # or: import plait.threading as threading
import time


def work(name: str) -> None:
    """Count to three, then sleep for two seconds."""
    for number in range(1, 4):
        print(f"{name}: {number}\n", end="")  # One write each: lines of two threads do not mix.
    time.sleep(2)
    print(f"{name}: awake\n", end="")


if __name__ == "__main__":
    began = time.perf_counter()
    workers = [threading.Thread(target=work, args=(name,)) for name in ("Ada", "Grace")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"both have ended: {[worker.is_alive() for worker in workers]}")
    print(f"seconds: {time.perf_counter() - began:.2f}")
