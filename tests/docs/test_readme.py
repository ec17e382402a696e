"""README.md: its numbers, length and links. All pages: the form of their tables, and an entry of the API for every public name."""

import re

import pytest
from test_pages import ROOT

README = (ROOT / "README.md").read_text("utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text("utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
API = ROOT / "tests" / "project" / "public_api.txt"


def tables(text):
    """[[cells of a row]] of each table; a | in a cell is escaped."""
    for table in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", row)[1:-1] for row in table.splitlines()]
        yield [[cell.strip() for cell in row] for row in rows]


def benchmark_rows():
    """{title: (fastgrad's time, the best peer's time and name, their ratio)} of the committed tables."""
    rows = {}
    for head, _, *table in tables(BENCHMARKS):
        for row in table:
            cells = dict(zip(head, row, strict=True))
            if best := re.fullmatch(r"(\S+) \((.+)\)", cells.get("best peer / fastgrad", "")):
                ratio, peer = best.groups()
                rows[row[0]] = cells["fastgrad"], f"{cells[peer]} ({peer})", ratio
    return rows


def test_the_numbers_of_the_readme_are_those_of_the_benchmark_table():
    measured = benchmark_rows()
    assert len(measured) > 50
    (rows,) = [table[2:] for table in tables(README) if "best peer" in table[0]]
    assert len(rows) == 6
    for title, *numbers in rows:
        assert tuple(numbers) == measured[title], title
    # not the fastest alone
    assert sum(float(row[-1]) < 1.02 for row in rows) >= 2


def test_the_benchmark_table_names_its_best_peers():
    for head, _, *table in tables(BENCHMARKS):
        for row in table:
            cells = dict(zip(head, row, strict=True))
            if best := re.fullmatch(r"(\S+) \((.+)\)", cells.get("best peer / fastgrad", "")):
                ratio = seconds(cells[best[2]]) / seconds(cells["fastgrad"])
                # cells have three or four digits
                assert ratio == pytest.approx(float(best[1]), rel=0.01), row[0]


def test_the_picture_of_sizes_is_shown_once_it_is_there():
    """`python -m bench.scaling --output docs/img` makes it; then the page's comment around it goes, and scaling.json."""
    shown = re.sub(r"<!--.*?-->", "", BENCHMARKS, flags=re.DOTALL)
    assert "](img/scaling.png)" in BENCHMARKS
    assert ("](img/scaling.png)" in shown) == (ROOT / "docs" / "img" / "scaling.png").exists()


def seconds(cell):
    number, unit = cell.split()
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1, "MiB": 1}[unit]


def test_the_readme_is_one_page():
    assert len(README.splitlines()) <= 160
    assert 'pip install -e ".[test]" && pytest' in README


def test_links_of_the_readme_lead_to_files():
    targets = re.findall(r"\]\(([^)#]+)", README)
    assert len(targets) > 10
    missing = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert not missing, missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_row_of_a_table_has_the_cells_of_its_head(path):
    for table in tables(path.read_text("utf-8")):
        assert len({len(row) for row in table}) == 1, table[0]


def test_every_public_name_has_an_entry_in_the_api_pages():
    entries, modules = set(), set()
    for path in (ROOT / "docs" / "api").glob("*.md"):
        text = path.read_text("utf-8")
        entries |= set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
        # a module has a page
        modules |= set(re.findall(r"^# (fastgrad\.\w+)$", text, re.MULTILINE))
    names = [line.partition("(")[0] for line in API.read_text("utf-8").splitlines()]
    # a member is in the entry of its class
    missing = [name for name in names if not {name, name.rpartition(".")[0]} & entries and name not in modules]
    assert missing == ["fastgrad.__version__"]
    assert entries <= set(names)
