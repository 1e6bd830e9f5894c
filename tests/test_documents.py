"""What the documents say can be done is done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from document_blocks import blocks_of

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("demo/**/*.md")])


def code_blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def test_the_readme_snippet_runs(monkeypatch, capsys):
    (snippet,) = code_blocks(ROOT / "README.md", "python")
    monkeypatch.chdir(ROOT)
    exec(compile(snippet, "README.md", "exec"), {})
    energy = float(capsys.readouterr().out.split()[0])
    # Eight atoms of about -7.5 eV each.
    assert -61 < energy < -59


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}, which does not exist"


def test_the_site_is_built_without_a_warning_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    pages = {str(page.relative_to(tmp_path / "site")): page.read_text() for page in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "CHANGELOG.html", *(f"docs/{page.stem}.html" for page in ROOT.glob("docs/*.md"))} <= set(
        pages
    )
    assert "HIENetCalculator" in pages["docs/api.html"]
    for name, page in pages.items():
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="(https?:[^"]*)"', page)
        loaded += re.findall(r'<link[^>]* rel="(?:stylesheet|preconnect)"[^>]* href="(https?:[^"]*)"', page)
        assert loaded == [], f"{name} loads from elsewhere"


def words_of_sources() -> str:
    """Python, C++ and the Makefile, with string literals that continue on the next line in one piece."""
    paths = [path for folder in ("hienet", "deploy", "pair_hienet") for path in (ROOT / folder).rglob("*")]
    text = (ROOT / "Makefile").read_text()
    text += "".join(path.read_text() for path in paths if path.suffix in {".py", ".cpp", ".h"})
    return re.sub(r'"\s*\n\s*f?"', "", text)


def test_the_messages_of_the_troubleshooting_page_are_in_the_sources():
    """The longest piece of each without what differs from case to case; LAMMPS' and the shell's own are left out."""
    foreign = {"Unrecognized pair style", "cannot open shared object file", "All pair coeffs", "command not found"}
    sources = words_of_sources()
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    messages = [m for cell in cells for m in re.findall(r"``? ?(.+?) ?``?(?=,|$| \()", cell.strip())]
    assert len(messages) > 40
    for message in messages:
        if not any(words in message for words in foreign):
            pieces = re.split(r"\.\.\.|\b[A-Zij]\b|\(s\)|\d+ \(\w+\)|\d+|`", message)
            longest = max(pieces, key=len).strip(" ,'")
            assert longest in sources, f"no message has the words `{longest}` of `{message}`"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lines_are_short_enough_to_read_and_to_compare(path):
    lines = path.read_text().splitlines()
    long = [number for number, line in enumerate(lines, 1) if len(line) > 120 and not line.startswith(("|", "```"))]
    # What a program printed stays as it was.
    printed = {n for block in blocks_of(path) if block.language == "text" for n in block.lines}
    assert set(long) - printed == set(), f"{path.name} has lines of more than 120 characters"


def test_the_readme_names_existing_make_targets():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"make ([\w-]+)", "\n".join(code_blocks(ROOT / "README.md", "bash"))))
    assert named
    assert named <= targets
