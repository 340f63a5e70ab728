"""The documents mention files that exist, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
MENTION = re.compile(
    r"`([\w./-]*/[\w.-]+\.(?:py|md|toml|csv|json|yml)|(?:tests|perf|docs)/[\w/]+)`"
)
HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)

each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def anchors(document: Path) -> set[str]:
    """The ids that GitHub gives to the headings."""
    headings = HEADING.findall(FENCE.sub("", document.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_resolve(document: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@each_document
def test_files_that_are_mentioned_exist(document: Path) -> None:
    """Their paths are relative to the repository, or to the package."""
    mentioned = MENTION.findall(FENCE.sub("", document.read_text()))
    bases = (ROOT, ROOT / "src", ROOT / "src" / "sarathi")
    assert [name for name in mentioned if not any((base / name).exists() for base in bases)] == []
