"""Two processes that print, count, sleep and are joined: `python examples/first_steps/processes.py`."""

import multiprocessing  # or: import plait.multiprocessing as multiprocessing
import time


def work(name: str) -> None:
    """Count to three, then sleep for two seconds."""
    for number in range(1, 4):
        print(f"{name}: {number}\n", end="")  # One write each: lines of two processes do not mix.
    time.sleep(2)
    print(f"{name}: awake\n", end="")


if __name__ == "__main__":
    began = time.perf_counter()
    workers = [multiprocessing.Process(target=work, args=(name,)) for name in ("Ada", "Grace")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"both have ended: {[worker.exitcode for worker in workers]}")
    print(f"seconds: {time.perf_counter() - began:.2f}")
