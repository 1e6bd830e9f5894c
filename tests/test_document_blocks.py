"""Blocks of shell in the documents call commands and options that there are."""

from __future__ import annotations

import pytest
from document_blocks import REASONS, ROOT, Block, blocks_of, check_options

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("demo/data/*.md")]
)
RUNNABLE = ("bash", "python")
BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document)]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    if block.is_shell:
        assert block.language in ("bash", "console"), "mark it as bash, or it is not run"
        for command in block.commands:
            check_options(command)
    if block.reason is not None:
        assert block.language in RUNNABLE, "only shell and Python are run at all"
        assert block.reason.startswith(REASONS), f"`{block.reason}` is none of the known reasons"
