"""The docs: their links resolve, and the sections that the code cites exist."""

import re
import tomllib
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


def index_readme():
    """Return the README as the package index shows it, made from README.md by the rules in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    rules = project["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = "".join(
        (ROOT / part["path"]).read_text("utf-8") if "path" in part else part["text"]
        for part in rules["fragments"]
    )
    for rule in rules["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text


def test_the_readme_of_the_package_index_has_no_relative_link_and_no_command_that_needs_a_checkout_first():
    text = index_readme()
    assert [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link] == []
    assert "`docs/architecture.md`" in text
    first_command = next(line for line in text.splitlines() if "omnigate demo" in line)
    assert "pip install -q 'omnigate[cli]' &&" in first_command


def test_the_first_command_of_the_readme_installs_no_package_for_tests_or_linting():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    readme = (ROOT / "README.md").read_text("utf-8")
    first, second = re.findall(r"pip install .*'\.\[(\w+)\]' &&", readme)
    assert (first, second) == ("cli", "test")
    names = {extra: {re.split(r"[>=<;\[ ]", line)[0] for line in extras[extra]} for extra in extras}
    assert names["cli"] | names["gateway"] == {
        "omnigate",
        "click",
        "jsonschema",
        "platformdirs",
        "prompt-toolkit",
        "rich",
        "pydantic",
        "starlette",
        "uvicorn",
    }
    assert not names["lint"] & (names["test"] | names["cli"] | names["gateway"])


def test_every_protocol_section_cited_in_the_code_exists():
    sections = headings(ROOT / "docs" / "protocol.md")
    unknown = [
        f"{path.relative_to(ROOT)}: {section}"
        for path in sorted((ROOT / "omnigate").rglob("*.py"))
        for section in re.findall(r'docs/protocol\.md, "([^"]+)"', path.read_text("utf-8"))
        if section not in sections
    ]
    assert unknown == []
