"""The command line: ``plait map``, ``plait compare`` and ``plait run``."""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from plait.executor import Executor
    from plait.progress import Bar

# Exit statuses. 130 and 141 are what a shell reports for a program that SIGINT or SIGPIPE ended.
FAILED, USAGE, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141

# How many lines are read ahead of the oldest result that was not printed yet, for each worker.
_LINES_AHEAD = 16
_MOST_LINES_AHEAD = 2048

_MODELS = """\
models (--model):
  tasks         coroutines on one event loop, for many waits; blocking functions
                are handed to threads
  threads       for blocking waits, and CPU work that releases the GIL
                (compression, numpy)
  processes     for CPU work in Python; inputs and results are pickled
  interpreters  threads with an interpreter each; Python 3.14 and newer
  hybrid        processes that each run many jobs at once
  auto          the default: measures the first items, picks one and says why
"""

_EXAMPLES = """\
examples:
  plait map os.path:getsize names.txt          call it with each line's text
  seq 10 | plait map --json math:factorial     or with each line parsed as JSON
  plait compare os.path:getsize names.txt      which model is best, by how much
  plait run script.py --its-option             plait instead of standard pools
  plait map --help                             more about a command
"""

_MAP = """\
Call FUNCTION once per input line and print each result on a line of its own, as
soon as it is there. FUNCTION may be def or async def. The input may be endless.
The current directory is importable, as with python -m.
"""

_MAP_EPILOG = (
    """\
examples:
  plait map app:fetch urls.txt --model tasks --workers 200
  tail -f log | plait map app:parse --unordered
  plait map --json app:score < records.jsonl > scores.jsonl
  plait map app:convert files.txt --timeout 30 --retries 2

A line that fails does not stop the others: nothing is printed for it on
standard output, and its number and error on standard error.

exit status:
  0    every item succeeded
  1    an item failed
  2    nothing was run: a wrong option, a function that cannot be imported, a
       file that cannot be read
  130  interrupted by Ctrl-C

"""
    + _MODELS
)

_COMPARE = """\
Run the same work serially and under every model, in turns, and print a table:
wall time, how many times as fast as serial, CPU time and peak memory (workers
included), and what auto picks. Each run has a process of its own. Results must
be equal to the serial ones; if they are not, that is told and the exit status
is 1.
"""

_COMPARE_EPILOG = (
    """\
examples:
  plait compare app:parse files.txt
  plait compare app:fetch urls.txt --workers tasks=500 --workers threads=64
  plait compare app:score records.jsonl --json-input --rounds 5
  plait compare app:parse files.txt --model threads --json > report.json

"""
    + _MODELS
)

_RUN = """\
Run a Python script (with -m, a module) as python would, with plait.install() in
force: the standard library's pools are plait's. What follows the script's name
belongs to the script.
"""

_RUN_EPILOG = """\
examples:
  plait run script.py --its-option
  plait run -m package.module argument
"""


class _UsageError(Exception):
    """Something that the person who typed the command can mend: exit status 2."""


class _OutputError(Exception):
    """The results cannot be written, though somebody wants them: a full disk."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status. ``arguments`` defaults to ``sys.argv[1:]``."""
    options = _parse(arguments)
    command: Callable[[argparse.Namespace], int] = options.run_command
    try:
        return command(options)
    except _UsageError as error:
        print(f"plait {options.command}: {error}", file=sys.stderr)
        return USAGE


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse before Python 3.13.1 gives up on a FILE that comes after an option.
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "file", None) == "-":
        options.file = rest.pop()
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plait",
        description="Run a function over many inputs with coroutines, threads or processes.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(
        name: str, summary: str, text: str, epilog: str, run: Callable[..., int]
    ) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=summary,
            description=text,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        made.set_defaults(run_command=run)
        return made

    def add_work(command: argparse.ArgumentParser) -> None:
        command.add_argument("function", metavar="MODULE:FUNCTION", help="what to call, such as math:sqrt")
        command.add_argument(
            "file",
            metavar="FILE",
            nargs="?",
            default="-",
            help="the inputs, one per line (default: standard input)",
        )

    mapping = add(
        "map", "call a function on every line of a file or of standard input", _MAP, _MAP_EPILOG, _map
    )
    add_work(mapping)
    mapping.add_argument(
        "--json", action="store_true", help="each line is a JSON value, and so is each result"
    )
    mapping.add_argument(
        "--unordered", action="store_true", help="print results as they come, not in input order"
    )
    mapping.add_argument("--model", default="auto", help="where the work runs: see below (default: auto)")
    mapping.add_argument(
        "--workers", type=_at_least_one, metavar="N", help="how many at a time (default: by model)"
    )
    mapping.add_argument("--timeout", type=_positive, metavar="SECONDS", help="how long one item may run")
    mapping.add_argument(
        "--retries", type=_at_least_none, default=0, metavar="N", help="tries after a failed one"
    )
    mapping.add_argument(
        "--progress", action="store_true", help="show on standard error how many items are done"
    )
    mapping.add_argument(
        "--traceback", action="store_true", help="show where failed items failed, not only why"
    )

    comparing = add("compare", "measure a function under every model", _COMPARE, _COMPARE_EPILOG, _compare)
    add_work(comparing)
    comparing.add_argument("--json", action="store_true", help="print JSON instead of a table")
    comparing.add_argument("--html", metavar="FILE", help="also write a page with charts and timelines")
    comparing.add_argument(
        "--json-input", action="store_true", help="each line is a JSON value, as in map --json"
    )
    comparing.add_argument(
        "--model", action="append", metavar="MODEL", help="only this one (may be repeated)"
    )
    comparing.add_argument(
        "--workers",
        action="append",
        default=[],
        metavar="[MODEL=]N",
        help="how many, for one model or for every one",
    )
    comparing.add_argument(
        "--rounds", type=_at_least_one, default=3, metavar="N", help="runs of each (default: 3)"
    )

    running = add("run", "run a script with plait in place of the standard pools", _RUN, _RUN_EPILOG, _run)
    running.add_argument("-m", dest="module", action="store_true", help="SCRIPT is the name of a module")
    running.add_argument("script", metavar="SCRIPT")
    running.add_argument(
        "arguments", metavar="...", nargs=argparse.REMAINDER, help="the script's own arguments"
    )
    return parser


class _Version(argparse.Action):
    """``--version``, looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"plait {version('plait')} (Python {sys.version.split()[0]})")
        parser.exit()


def _at_least_one(text: str) -> int:
    return _whole_number(text, 1)


def _at_least_none(text: str) -> int:
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {number}")
    return number


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from None
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0 seconds, not {text}")
    return number


def _load(reference: str) -> Callable[..., Any]:
    """The function, found as ``python -m`` would: in the current directory first."""
    from plait._reference import load_function

    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return load_function(reference)
    except (ImportError, TypeError, ValueError) as error:
        raise _UsageError(error) from error


def _open(name: str) -> IO[bytes]:
    """A file or standard input, on a buffer of our own: the reading thread may be blocked in it at exit."""
    try:
        return open(0 if name == "-" else name, "rb", closefd=name != "-")
    except OSError as error:
        raise _UsageError(f"cannot read {name!r}: {error.strerror}") from error


def _lines(file: IO[bytes]) -> Iterator[tuple[int, str]]:
    """Number and text of each line, as soon as it is there; bytes that are not UTF-8 survive."""
    for number, line in enumerate(file, 1):
        yield number, line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def _json_value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


# plait map


def _map(options: argparse.Namespace) -> int:
    function = _load(options.function)
    file = _open(options.file)
    from plait.executor import Executor

    try:
        executor = Executor(options.model, workers=options.workers)
    except (ValueError, RuntimeError, NotImplementedError, ImportError) as error:
        raise _UsageError(error) from error
    if isinstance(
        sys.stdout, io.TextIOWrapper
    ):  # What comes in as UTF-8 goes out as UTF-8, whatever the locale.
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
    try:
        status = _LineMap(executor, function, options).run(file)
        executor.shutdown()
    except KeyboardInterrupt:
        _leave_now(executor, INTERRUPTED, "plait: interrupted")
    except BrokenPipeError:
        _leave_now(executor, PIPE_CLOSED)
    except _OutputError as error:
        _leave_now(executor, FAILED, f"plait map: cannot write the results: {error}")
    return status


def _leave_now(executor: Executor, status: int, message: str | None = None) -> NoReturn:
    """End at once: jobs that run are not waited for. Threads cannot be stopped; workers end with us."""
    if message is not None:
        print(message, file=sys.stderr, flush=True)
    with suppress(KeyboardInterrupt):
        executor.shutdown(wait=False, cancel_futures=True)
    os._exit(status)


class _LineMap:
    """Reads lines in one thread, prints results in another, and keeps a bounded number of jobs in between."""

    def __init__(self, executor: Executor, function: Callable[..., Any], options: argparse.Namespace) -> None:
        import queue
        import threading

        self.function = function
        self.json: bool = options.json
        self.ordered = not options.unordered
        self.traceback: bool = options.traceback
        self.bar = _bar(options.function) if options.progress else None
        self.output = sys.stdout  # On a terminal, the bar has put itself in front of it.
        self.executor = executor.options(timeout=options.timeout, retries=options.retries)
        workers = executor.workers
        self.room = threading.Semaphore(max(2 * workers, min(_LINES_AHEAD * workers, _MOST_LINES_AHEAD)))
        # In order: every item, as it was submitted. Unordered: as it finished. None: no more lines.
        self.items: queue.SimpleQueue[tuple[int, concurrent.futures.Future[Any]] | None] = queue.SimpleQueue()
        self.read = 0
        self.reading_error: Exception | None = None
        self.failed = 0

    def run(self, file: IO[bytes]) -> int:
        """Print the result of every line of ``file``; returns the exit status."""
        import threading

        threading.Thread(target=self._read, args=[file], name="plait-map-reader", daemon=True).start()
        printed = 0
        try:
            while (item := self._next()) is not None:
                self._print(*item)
                self.room.release()
                printed += 1
            while printed < self.read:  # As they finish: the end of the lines comes before the last results.
                item = self._next()
                assert item is not None
                self._print(*item)
                printed += 1
            self._close_bar(printed)
        finally:
            self._close_bar(None)
        self._write("")
        if self.reading_error is not None:
            print(f"plait map: stopped after line {self.read}: {self.reading_error}", file=sys.stderr)
            return FAILED
        if self.failed:
            print(f"plait map: {self.failed} of {printed} items failed", file=sys.stderr)
        return FAILED if self.failed else 0

    def _close_bar(self, completed: int | None) -> None:
        if self.bar is not None:
            self.bar.close(completed)

    def _next(self) -> tuple[int, concurrent.futures.Future[Any]] | None:
        """The next line to print, when there is one; our reader gets the earlier ones meanwhile."""
        if self.items.empty():
            self._write("")
        item = self.items.get()
        if item is not None and not item[1].done():
            self._write("")
        return item

    def _read(self, file: IO[bytes]) -> None:
        try:
            for number, text in _lines(file):
                if self.json and not text.strip():
                    continue
                self.room.acquire()
                future = self._submit(text)
                self.read += 1
                if self.bar is not None:
                    future.add_done_callback(self.bar.counter(1))
                if self.ordered:
                    self.items.put((number, future))
                else:
                    future.add_done_callback(partial(self._put, number))
        except Exception as error:
            self.reading_error = error
        finally:
            self.items.put(None)

    def _put(self, number: int, future: concurrent.futures.Future[Any]) -> None:
        self.items.put((number, future))

    def _submit(self, text: str) -> concurrent.futures.Future[Any]:
        try:
            value = _json_value(text) if self.json else text
        except ValueError as error:
            failed: concurrent.futures.Future[Any] = concurrent.futures.Future()
            failed.set_exception(error)
            return failed
        return self.executor.submit(self.function, value)

    def _print(self, number: int, future: concurrent.futures.Future[Any]) -> None:
        try:
            result = future.result()
            text = json.dumps(result) if self.json else str(result)
        except Exception as error:
            self.failed += 1
            print(f"line {number}: {_told(error)}", file=sys.stderr)
            if self.traceback:
                import traceback

                traceback.print_exception(error, file=sys.stderr)
            return
        self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        """Write to the output; an empty text flushes it."""
        try:
            if text:
                self.output.write(text)
            else:
                self.output.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _OutputError(error.strerror) from error


def _bar(name: str) -> Bar:
    from plait.progress import Bar

    return Bar(name, None)


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# plait compare


def _compare(options: argparse.Namespace) -> int:
    _load(options.function)
    workers = _workers_by_model(options.workers)
    from plait.compare import SERIAL, available_models, compare

    models = _models_to_compare(options.model, [*available_models(), "auto"])
    with _open(options.file) as file:
        lines = [(number, text) for number, text in _lines(file) if text.strip() or not options.json_input]
    items: list[Any] = []
    for number, text in lines:
        try:
            items.append(_json_value(text) if options.json_input else text)
        except ValueError as error:
            raise _UsageError(f"line {number}: {error}") from None
    if not items:
        raise _UsageError(f"there is nothing to measure: {options.file!r} has no lines")

    from rich.console import Console

    console, notes = Console(), Console(stderr=True)
    try:
        with notes.status("measuring") as status:
            found = compare(
                options.function,
                items,
                models=models,
                workers=workers,
                rounds=options.rounds,
                path=[str(Path.cwd())],
                watch=lambda model, turn: status.update(f"{model}, round {turn + 1} of {options.rounds}"),
                reports=options.html is not None,
            )
    except KeyboardInterrupt:
        print("plait: interrupted", file=sys.stderr)
        return INTERRUPTED
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        rounds = f"median of {found.rounds} rounds" if found.rounds > 1 else "one round"
        console.print(f"{found.function}: {found.items} items, {found.cpus} CPUs, {rounds}", highlight=False)
        console.print(found.table())
        for remark in found.remarks():
            console.print(remark, highlight=False, markup=False)
        console.print(f"best: {found.sentence()}", highlight=False, markup=False)
    if options.html is not None:
        try:
            found.save(options.html)
        except OSError as error:
            raise _UsageError(f"cannot write {options.html}: {error.strerror}") from None
    return 0 if found.equal and found[SERIAL].runs else FAILED


def _models_to_compare(asked: list[str] | None, known: list[str]) -> list[str]:
    for model in asked or ():
        if model not in known:
            raise _UsageError(f"unknown model {model!r}: here, the models are {', '.join(known)}")
    return list(dict.fromkeys(asked)) if asked else known


def _workers_by_model(texts: list[str]) -> dict[str, int]:
    """``["16", "processes=2"]`` as a mapping; a bare number is for every model not named."""
    from plait.compare import available_models

    known = [*available_models(), "auto"]
    workers: dict[str, int] = {}
    named: dict[str, int] = {}
    for text in texts:
        model, equals, number = text.rpartition("=")
        if equals and model not in known:
            raise _UsageError(
                f"--workers {text}: unknown model {model!r}: here, the models are {', '.join(known)}"
            )
        try:
            count = _at_least_one(number)
        except argparse.ArgumentTypeError as error:
            raise _UsageError(f"--workers {text}: {error}") from None
        if equals:
            named[model] = count
        else:
            workers = dict.fromkeys(known, count)
    return workers | named


# plait run


def _run(options: argparse.Namespace) -> int:
    import runpy

    import plait

    name: str = options.script
    if not options.module and not Path(name).exists():
        raise _UsageError(f"there is no file {name!r} (a module is run with -m)")
    if options.module:
        import importlib.util

        sys.path.insert(0, str(Path.cwd()))
        try:
            missing = importlib.util.find_spec(name) is None
        except (ImportError, ValueError) as error:
            raise _UsageError(f"cannot run module {name!r}: {error}") from error
        if missing:
            raise _UsageError(f"there is no module {name!r}")
    else:
        sys.path.insert(0, str(Path(name).resolve().parent))
    sys.argv = [name, *options.arguments]
    plait.install()
    if options.module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
    return 0
