"""Jobs defined in the main module, whatever that is, work the same, and the main module is run once."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time
import zipapp
from pathlib import Path

import pytest

# Not guarded by `if __name__ == "__main__"`.
PROGRAM = """
import plait
print("the main module runs")
class Point:
    def __init__(self, x):
        self.x = x
SCALE = 10
def scale(point):
    return Point(point.x * SCALE)
async def later(point):
    return scale(point)
with plait.Executor("processes", 2) as ex:
    point = ex.submit(scale, Point(4)).result()
    print(type(point) is Point, point.x)
    print([point.x for point in ex.map(later, map(Point, range(3)))])
    print(list(ex.map(lambda x: x + SCALE, range(3))))
    ex.submit(print, "from a worker").result()
"""
EXPECTED = ["the main module runs", "True 40", "[0, 10, 20]", "[10, 11, 12]", "from a worker"]


def run(*arguments: object, stdin: str | None = None, cwd: Path | None = None) -> list[str]:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        # As on a terminal: what the program prints between jobs does not wait until its end.
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    assert run(script) == EXPECTED


def test_a_script_with_a_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "def main():\n" + textwrap.indent(PROGRAM, "    ") + "if __name__ == '__main__':\n    main()\n"
    )
    assert run(script) == EXPECTED


def test_a_command() -> None:
    assert run("-c", PROGRAM) == EXPECTED


def test_a_module(tmp_path: Path) -> None:
    package = tmp_path / "outfit_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PROGRAM)
    (tmp_path / "outfit_module.py").write_text(PROGRAM)
    assert run("-m", "outfit_module", cwd=tmp_path) == EXPECTED
    assert run("-m", "outfit_package", cwd=tmp_path) == EXPECTED


def test_standard_input() -> None:
    assert run("-", stdin=PROGRAM) == EXPECTED


def test_a_zipapp(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "__main__.py").write_text(PROGRAM + "import inside\ninside.go()\n")
    (source / "inside.py").write_text(
        textwrap.dedent("""
            import plait
            def job(x):
                return x + 1
            def go():
                with plait.Executor("processes", 1) as ex:
                    print(ex.submit(job, 1).result())
        """)
    )
    zipapp.create_archive(source, tmp_path / "app.pyz")
    assert run(tmp_path / "app.pyz") == [*EXPECTED, "2"]


def test_a_notebook() -> None:
    """Cells that are run one by one in a namespace called `__main__`, with streams of their own."""
    program = f"""
import code, io, sys
class Stream(io.TextIOBase):
    def __init__(self):
        self.text = ""
    def write(self, text):
        self.text += text
        return len(text)
out = sys.stdout
sys.stdout = Stream()
shell = code.InteractiveInterpreter(sys.modules["__main__"].__dict__)
cells = {PROGRAM!r}.split("class Point")
cells[1] = "class Point" + cells[1]
for cell in cells:
    shell.runsource(cell, "<cell>", "exec")
shell.runsource("ex = plait.Executor('processes', 1)", "<cell>", "exec")
shell.runsource("def redefined():\\n    return 1\\n", "<cell>", "exec")
shell.runsource("print(ex.submit(redefined).result())", "<cell>", "exec")
shell.runsource("def redefined():\\n    return 2\\n", "<cell>", "exec")
shell.runsource("print(ex.submit(redefined).result())", "<cell>", "exec")
shell.runsource("ex.shutdown()", "<cell>", "exec")
print(sys.stdout.text, end="", file=out)
"""
    assert run("-c", program) == [*EXPECTED, "1", "2"]


class Terminal:
    """A program on a terminal."""

    def __init__(self, *arguments: str) -> None:
        self.text = ""
        self.status: int | None = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="dumb", PYTHON_BASIC_REPL="1", PYTHON_COLORS="0", NO_COLOR="1")
            os.execv(sys.executable, [sys.executable, *arguments])

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def read_until(self, wanted: str | None, patience: float = 60) -> None:
        """Read until something is seen, or to the end."""
        deadline = time.monotonic() + patience
        while wanted is None or wanted not in self.text:
            assert select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0], self.text
            try:
                data = os.read(self.fd, 4096)
            except OSError:  # how a terminal says that nobody is left
                data = b""
            if not data:
                assert wanted is None, self.text
                self.status = os.waitpid(self.pid, 0)[1]
                return
            self.text += data.decode().replace("\r\n", "\n")

    def close(self) -> None:
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)


def test_an_interactive_session() -> None:
    terminal = Terminal("-q")
    try:
        terminal.read_until(">>> ")
        for line in [
            "import plait; ex = plait.Executor('processes', 1)",
            "def twice(x): return 2 * x\n",
            "print('result', ex.submit(twice, 21).result())",
            "print('result', *ex.map(lambda x: twice(x) + 1, range(3)))",
            "ex.submit(print, 'worker', 'speaks').result()",
            "ex.shutdown(); print('all', 'done')",
        ]:
            terminal.type(line + "\n")
        terminal.read_until("all done")
        terminal.type("exit()\n")
        terminal.read_until(None)
    finally:
        terminal.close()
    assert terminal.status == 0
    for wanted in ("result 42\n", "result 1 3 5\n", "worker speaks\n"):
        assert wanted in terminal.text
    assert "Traceback" not in terminal.text


JOBS = """
import sys, time, plait
def nap(x):
    print("a job runs", flush=True)
    time.sleep(60)
def spin(x):
    print("a job runs", flush=True)
    while True:
        pass
where, model = sys.argv[1:]
job = spin if model == "processes" else nap
with plait.Executor(model, 2) as ex:
    if where == "result":
        [ex.submit(job, x) for x in range(10)][0].result()
    elif where == "map":
        list(ex.map(job, range(10)))
    else:
        [ex.submit(job, x) for x in range(10)]
"""


@pytest.mark.parametrize("model", ["processes", "hybrid", "auto"])
@pytest.mark.parametrize("where", ["result", "map", "leaving"])
def test_ctrl_c_on_a_terminal_gives_one_traceback(where: str, model: str) -> None:
    terminal = Terminal("-c", JOBS, where, model)
    try:
        terminal.read_until("a job runs")
        terminal.type("\x03")
        terminal.read_until(None, patience=30)
    finally:
        terminal.close()
    assert terminal.text.count("Traceback") == 1, terminal.text
    assert terminal.text.rstrip().endswith("KeyboardInterrupt")
    assert terminal.status is not None
    assert os.waitstatus_to_exitcode(terminal.status) == -signal.SIGINT
