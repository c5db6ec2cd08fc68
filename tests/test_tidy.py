"""The repository's own rules: first lines, unsafe code, paths and links in documents, nothing left behind."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
).stdout.split("\n")
FILES = [path for name in LISTED if name and (path := ROOT / name).is_file()]

if not FILES:
    pytest.skip("not a git checkout: nothing says which files are the project's", allow_module_level=True)

COMMENT = {".py": '"""', ".pyi": "#", ".rs": "//!", ".toml": "#", ".md": "# ", "": "#"}
UNMARKED = {"Cargo.lock", "LICENSE", "LICENSE-MIT", "LICENSE-APACHE", ".gitignore"}


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def ending(*suffixes: str) -> list[Path]:
    return [path for path in FILES if path.suffix in suffixes]


def first_line(path: Path) -> str:
    lines = path.read_text().splitlines()
    if lines and lines[0].startswith("#!") and not lines[0].startswith("#!["):
        lines = lines[1:]
    return lines[0] if lines else ""


def test_the_first_line_of_every_file_says_what_it_is_for() -> None:
    silent = [
        path
        for path in FILES
        if path.name not in UNMARKED
        and path.suffix in COMMENT
        and path.stat().st_size
        and not re.match(re.escape(COMMENT[path.suffix]) + r"\s*\S|# \S", first_line(path))
    ]
    assert names(silent) == []


def test_unsafe_code_is_only_where_cargo_toml_allows_it() -> None:
    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
    allowed = manifest["workspace"]["metadata"]["plait"]["unsafe-files"]
    found = [path for path in ending(".rs") if re.search(r"allow\s*\([^)]*unsafe_code", path.read_text())]
    assert sorted(allowed) == sorted(names(found))
    assert manifest["workspace"]["lints"]["rust"]["unsafe_code"] == "deny"


def test_the_faults_that_tests_provoke_are_not_in_the_extension() -> None:
    from plait import _rust

    assert b"PLAIT_FAULT_PLAN" not in Path(_rust.__file__).read_bytes()


def test_every_path_that_the_architecture_names_exists() -> None:
    lines = (ROOT / "ARCHITECTURE.md").read_text().splitlines()
    named = set(re.findall(r"`([\w.-]+/[\w./-]*|[\w-]+\.(?:md|toml))`", "\n".join(lines)))
    # In the table of slices, what a cell names is in the folder at the head of its column.
    rows = [line.strip("| ").split("|") for line in lines if line.startswith("|")]
    folders = [cell.strip(" `") for cell in rows[0]]
    for row in rows[1:]:
        for folder, cell in zip(folders, row, strict=True):
            named |= {folder + name for name in re.findall(r"`([^`]+)`", cell)}
    assert len(named) > 30
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def test_every_relative_link_in_the_documents_leads_somewhere() -> None:
    broken = []
    for path in ending(".md"):
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
            name = target.partition("#")[0]
            if "://" in target or not name:
                continue
            if not (path.parent / name).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


# Written in pieces, so that this file does not match its own rules.
FORBIDDEN = {
    "a note to do something later": r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
    "a path of one machine": r"/(roo" + r"t|hom" + r"e|wor" + r"k|Use" + r"rs)/\w",
    "a package registry's host": r"(pypi|pythonhosted|index\.crates|static\.crates)\." + r"(org|io)/",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    found = []
    for path in FILES:
        if path.name == "Cargo.lock":
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            for number, line in enumerate(lines, 1)
            if re.search(FORBIDDEN[what], line)
        ]
    assert found == []


def test_the_version_is_told_once() -> None:
    """Cargo.toml holds the version; the change log has an entry for it; pyproject takes it from Cargo."""
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
