"""The same job under every model, changed by a word: `python examples/first_steps/one_job_every_model.py`."""

import sys
import time

import plait

MODELS = ["tasks", "threads", "processes", "hybrid", "auto"]
if sys.version_info >= (3, 14):
    MODELS.append("interpreters")


def work(name: str) -> str:
    """Count to three, then sleep for two seconds."""
    counted = " ".join(str(number) for number in range(1, 4))
    time.sleep(2)
    return f"{name}: {counted} awake"


if __name__ == "__main__":
    for model in sys.argv[1:] or MODELS:
        with plait.Executor(model, workers=2) as executor:
            began = time.perf_counter()
            lines = list(executor.map(work, ["Ada", "Grace"]))
            seconds = time.perf_counter() - began
        for line in lines:
            print(line)
        print(f"model: {model}")
        print(f"seconds: {seconds:.2f}")
