"""What mkdocs cannot be told in mkdocs.yml: pages lie in several folders of the repository, and keep their places."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "*/README.md", "demo/data/README.md")
"""Patterns of what becomes a page."""

_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """The pages, and every file of the repository that they link to: figures, decks, configurations."""
    theme = [file for file in files if file.src_dir != config.docs_dir]
    pages = sorted({path for pattern in PAGES for path in ROOT.glob(pattern)})
    linked = {
        (page.parent / target).resolve()
        for page in pages
        for target in _LINK.findall(page.read_text())
        if "://" not in target
    }
    wanted = [*pages, *sorted(path for path in linked - set(pages) if path.is_file())]
    own = [File(str(path.relative_to(ROOT)), str(ROOT), config.site_dir, config.use_directory_urls) for path in wanted]
    return Files([*theme, *own])
