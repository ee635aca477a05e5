"""The docs: their links resolve, and the sections that the code cites exist."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def headings(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken_link(page: Path, link: str) -> bool:
    path, _, fragment = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return True
    return bool(fragment) and fragment not in map(anchor, headings(target))


def test_every_relative_link_in_the_docs_resolves():
    links = [
        (page, link)
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
        if "://" not in link
    ]
    assert len(links) > 5
    assert [f"{page.name}: {link}" for page, link in links if broken_link(page, link)] == []


def test_the_readme_links_to_every_page_of_the_docs():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


def test_every_protocol_section_cited_in_the_code_exists():
    sections = headings(ROOT / "docs" / "protocol.md")
    unknown = [
        f"{path.relative_to(ROOT)}: {section}"
        for path in sorted((ROOT / "omnigate").rglob("*.py"))
        for section in re.findall(r'docs/protocol\.md, "([^"]+)"', path.read_text("utf-8"))
        if section not in sections
    ]
    assert unknown == []
