"""`Executor.report()`: the table, the findings, and the page, which a browser has to draw."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from plait import Executor
from plait._job import Statistics
from plait.errors import WorkerDied
from plait.ledger import Ledger
from plait.report import Report, page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def echo(value: Any) -> Any:
    return value


def spin(turns: int) -> int:
    count = 0
    for number in range(turns):
        count += number
    return count


def die() -> None:
    import os

    os._exit(3)


class Snapshot:
    """What `Ledger` reads, made up."""

    now = 1000.0
    fallen = 0

    def __init__(self, model: str, jobs: int, **amounts: float) -> None:
        given: dict[str, Any] = {
            "jobs": jobs,
            "returned": jobs,
            "measured": jobs,
            "first": 990.0,
            "last": 1000.0,
        }
        self._totals = [(model, "f", given | amounts)]

    def totals(self) -> list[Any]:
        return self._totals

    def records(self, _model: str | None = None, _function: str | None = None) -> list[Any]:
        return []

    def workers(self) -> list[Any]:
        return []

    def quantiles(self, _of: str, _model: str | None, _shares: list[float]) -> list[float]:
        return []


def report_of(model: str, jobs: int, cpus: int = 4, **amounts: float) -> Report:
    statistics = Statistics(model, cpus, cpus, cpus, 0, 0, 0.0)
    report = Report(Ledger(Snapshot(model, jobs, **amounts)), statistics, None, cpus)  # type: ignore[arg-type]
    report.cpus = cpus
    return report


def test_a_report_is_a_table() -> None:
    with Executor("threads", workers=2) as ex:
        list(ex.map(spin, [20_000] * 40))
        text = str(ex.report())
    assert "40 jobs in" in text
    for title in ("in the queue", "serialise", "run: CPU", "GIL wait", "run: waiting", "workers idle"):
        assert title in text
    assert "plait-threads" in text
    assert "done within: 50%" in text


def test_it_says_what_auto_chose() -> None:
    with Executor(workers=2) as ex:
        list(ex.map(time.sleep, [0.002] * 60))
        report = ex.report()
        assert ex.decision is not None
        assert f"auto chose {ex.decision.model} for sleep" in str(report)
    assert report.as_dict()["decision"]["reason"] == ex.decision.reason


def test_nothing_to_report() -> None:
    with Executor("processes") as ex:
        report = ex.report()
    assert "0 jobs" in str(report)
    assert report.findings == []
    assert set(report.where.values()) == {0.0}
    assert json.loads(json.dumps(report.as_dict()))["timeline"]["jobs"] == []


def test_a_lost_worker_is_the_first_finding() -> None:
    with Executor("processes", workers=1) as ex:
        with pytest.raises(WorkerDied):
            ex.submit(die).result()
        report = ex.report()
    assert report.findings[0].text.startswith("1 of 1 jobs were lost with their workers")


# What was measured, and words that the first finding must have.
FINDINGS: dict[str, tuple[Report, str]] = {
    "pickling": (
        report_of("processes", 10, run=2.0, cpu=2.0, serialise_result=6.0, result_bytes=380_000_000),
        r"^75% of the workers' time is pickling results of 380 MB \(38 MB a job\): return less",
    ),
    "arguments": (
        report_of("processes", 10, run=2.0, cpu=2.0, serialise_arguments=2.0, argument_bytes=1_000_000),
        r"^50% of the workers' time is pickling arguments of 1 MB \(100 kB a job\): send less",
    ),
    "the GIL": (
        report_of("threads", 10, run=40.0, cpu=10.0, gil_wait=30.0),
        r"waited for the GIL for 75% of their time \(estimated\): use processes, predicted 4\.0 ×",
    ),
    "the GIL on one CPU": (
        report_of("threads", 10, cpus=1, run=20.0, cpu=10.0, gil_wait=10.0),
        r"waited for the GIL for 50% .* there is one CPU",
    ),
    "waiting in processes": (
        report_of("processes", 10, run=10.0, cpu=1.0, waiting=9.0),
        r"in processes spent 90% of their time waiting: threads, tasks or a hybrid",
    ),
    "short jobs": (
        report_of("processes", 1_000_000, run=1.0, cpu=1.0),
        r"a job runs for 1 µs under processes, and one was done every 10 µs.*chunksize=",
    ),
    "the queue": (
        report_of("threads", 100, run=10.0, cpu=1.0, waiting=9.0, queued=500.0),
        r"a job was in the queue for 5 s, and ran for 100 ms, 90% of it waiting: more workers",
    ),
    "a busy machine": (
        report_of("threads", 10, run=10.0, cpu=5.0, delayed=5.0),
        r"for 50% of their time jobs were ready to go on and had no CPU",
    ),
}


@pytest.mark.parametrize("what", FINDINGS)
def test_findings_have_the_number_behind_them(what: str) -> None:
    report, expected = FINDINGS[what]
    assert any(re.search(expected, finding.text) for finding in report.findings), report.findings
    assert len(report.findings) <= 3


def test_no_news_is_no_finding() -> None:
    # Nobody can have waited so long for a GIL that was hardly ever held.
    assert report_of("threads", 10, run=10.0, cpu=1.0, gil_wait=4.0, waiting=5.0).findings == []
    report = report_of("processes", 1000, run=40.0, cpu=38.0, waiting=1.0, serialise_result=0.5, queued=10.0)
    assert report.findings == []


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with Executor("threads", workers=2) as ex:
        ex.options(name="</script><b>&amp;").submit(spin, 1000).result()
        list(ex.map(spin, [1000] * 20))
        ex.report().save(path)
    text = path.read_text()
    assert "@@" not in text
    assert text.count("</script>") == 3
    assert "MIT License" in text
    assert not re.search(r"(?:src|href)\s*=\s*[\"']", text)
    assert "default-src 'none'" in text
    numbers = re.search(r'<script type="application/json" id="numbers">(.*?)</script>', text, re.S)
    assert numbers is not None
    (report,) = json.loads(numbers[1])["reports"]
    assert report["jobs"] == 21
    assert "</script><b>&amp;" in report["timeline"]["functions"]


def test_only_the_newest_jobs_are_drawn() -> None:
    with Executor("threads", workers=2) as ex:
        list(ex.map(echo, range(50)))
    timeline = ex.report().as_dict(most=20)["timeline"]
    assert len(timeline["jobs"]) == 20
    assert timeline["left_out"] == 30


def test_workers_were_as_busy_as_their_jobs() -> None:
    with Executor("threads", workers=1) as ex:
        ex.submit(time.sleep, 0.1).result()
        time.sleep(0.1)
        ex.submit(time.sleep, 0.1).result()
    (worker,) = ex.report().worker_times
    assert worker.jobs == 2
    assert 0.2 <= worker.busy <= worker.seconds
    assert worker.seconds >= 0.3
    assert worker.seconds - worker.busy >= 0.099


class Browser:
    """Headless Chromium, asked for what it has drawn."""

    FLAGS: ClassVar[list[str]] = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--virtual-time-budget=5000",
    ]

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str) -> str:
        assert BROWSER is not None
        profile = f"--user-data-dir={self.folder / 'profile'}"
        ran = subprocess.run(
            [BROWSER, *self.FLAGS, profile, *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return ran.stdout


@contextmanager
def drawn(folder: Path, text: str) -> Iterator[str]:
    path = folder / "page.html"
    path.write_text(text)
    yield Browser(folder).run("--dump-dom", path.as_uri())


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here to draw the page")
def test_a_browser_draws_every_chart(tmp_path: Path) -> None:
    with Executor("threads", workers=2) as ex:
        list(ex.map(spin, [2000] * 30))
        list(ex.map(time.sleep, [0.001] * 30))
        report = ex.report()
    with drawn(tmp_path, page(report.title, [report.as_dict()])) as document:
        # The script marks the page when it has come to its end: three charts, each a canvas.
        assert 'data-ready="3"' in document
        assert document.count("<canvas") == 3
        assert document.count('class="uplot') >= 3
        assert ">60</b>" in document
        for section in ("where", "latency", "timeline", "workers"):
            assert f'<section id="{section}">' in document
    picture = tmp_path / "page.png"
    Browser(tmp_path).run(
        "--window-size=1200,1400", f"--screenshot={picture}", (tmp_path / "page.html").as_uri()
    )
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here to draw the page")
def test_a_browser_draws_a_page_without_jobs(tmp_path: Path) -> None:
    with Executor("threads") as ex:
        report = ex.report()
    with drawn(tmp_path, page(report.title, [report.as_dict()])) as document:
        assert 'data-ready="0"' in document
