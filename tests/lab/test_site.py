"""The site: every link of it leads somewhere inside it."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from deqflow.lab.reports import site
from deqflow.lab.reports.index import NotebookRun, to_index
from deqflow.lab.reports.site import _LONG_CELL

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))
ORIGIN = {
    "commit": None,
    "modified": None,
    "versions": {},
    "hardware": {"processor": "a processor", "threads": 1, "gpus": []},
}


class Links(HTMLParser):
    """Collects what a page links to, and the places in it that can be linked to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.targets += [values[name] for name in ("href", "src") if values.get(name)]
        self.places |= {values["id"]} if values.get("id") else set()


def make_reports(folder: Path) -> Path:
    """Reports of all notebooks, as far as a site cares."""
    (folder / "assets").mkdir(parents=True)
    (folder / "assets" / "plotly.min.js").write_text("")
    for name in NAMES:
        page = (
            '<a href="index.html">All</a> <a href="../docs/glossary.md#Glossary">words</a> <a href="../data/">data</a>'
        )
        (folder / f"{name}.html").write_text(page)
        for kind in ("ipynb", "json"):
            (folder / f"{name}.{kind}").write_text("{}")
    runs = [NotebookRun(name, name, 1.0, "", {}, "short", "today") for name in NAMES]
    (folder / "index.html").write_text(to_index(runs, ORIGIN, {}))
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return site.build_site(ROOT, make_reports(folder / "reports"), folder / "site")


def test_every_link_of_the_site_leads_somewhere_inside_it(built):
    pages = {name: Links((built.folder / name).read_text()) for name in built.pages}
    lost = []
    for name, page in pages.items():
        for target in page.targets:
            if target.startswith(("http:", "https:", "mailto:", "data:")):
                continue
            path, _, anchor = target.partition("#")
            there = (built.folder / name).parent / unquote(path) if path else built.folder / name
            if not there.is_file() or not there.resolve().is_relative_to(built.folder.resolve()):
                lost.append(f"{name}: {target}")
            elif anchor and there.suffix == ".html":
                where = there.resolve().relative_to(built.folder.resolve()).as_posix()
                if unquote(anchor).lower() not in {place.lower() for place in pages[where].places}:
                    lost.append(f"{name}: {target}")
    assert not lost


def test_the_site_has_index_notebooks_readme_docs_and_glossary(built):
    wanted = {"index.html", "README.html", "docs/using.html", "docs/measured.html", "docs/glossary.html"}
    assert set(built.pages) >= wanted | {f"{name}.html" for name in NAMES}
    glossary = (built.folder / "docs" / "glossary.html").read_text()
    for word in ("evaluation", "residual", "fixed point", "contraction", "spectral radius", "correction"):
        assert f"<strong>{word}</strong>" in glossary
    for word in ("phantom gradient", "end-point error", "occlusion"):
        assert f"<strong>{word}</strong>" in glossary
    assert "aria-current=page>README</a>" in (built.folder / "README.html").read_text()


def test_cells_with_a_phrase_are_marked_and_tags_do_not_count():
    row = '<td>short</td><td align="left">a phrase that is longer than thirty</td><td><img src="a/long/address"></td>'
    marked = _LONG_CELL.sub(r'<td class="long"\1>', row)
    assert marked.count('class="long"') == 1
    assert '<td class="long" align="left">a phrase' in marked


def test_notebooks_link_to_the_sites_own_pages(built):
    page = (built.folder / f"{NAMES[0]}.html").read_text()
    assert 'href="docs/glossary.html#Glossary"' in page
    assert 'href="index.html"' in page
    assert f"notebooks/{NAMES[0]}.html: ../data/" in built.lost  # a folder is not a page
    assert f'href="{NAMES[0]}.html"' in (built.folder / "README.html").read_text()


def test_a_site_needs_reports_and_replaces_only_a_site(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No reports in .*: run 'make reports' first"):
        site.build_site(ROOT, tmp_path, tmp_path / "site")
    reports = make_reports(tmp_path / "reports")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear")
    with pytest.raises(ValueError, match="holds something that is not a site"):
        site.build_site(ROOT, reports, tmp_path / "mine")
    assert (tmp_path / "mine" / "diary.txt").read_text() == "dear"


def test_building_again_drops_what_an_earlier_site_left(tmp_path, capsys):
    reports = make_reports(tmp_path / "reports")
    site.build_site(ROOT, reports, tmp_path / "site")
    (tmp_path / "site" / "old.html").write_text("")
    site.main(str(reports), str(tmp_path / "site"))
    assert not (tmp_path / "site" / "old.html").exists()
    assert "pages." in capsys.readouterr().out
