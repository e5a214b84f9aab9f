"""Reports, README and docs as one folder of pages, which can be read without an installation or a network."""

import html
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import relpath
from pathlib import Path, PurePosixPath

from nbconvert.filters import markdown2html

from deqflow.data.writing import write_whole
from deqflow.lab.reports.html import code_colors, document, typeset

TEXTS = ("README.md", "CHANGELOG.md", "docs/*.md", "data/README.md", "reports/README.md", "deqflow/weights/README.md")
_LINK = re.compile(r'(?P<name>href|src)="(?P<target>[^"]+)"')
_LONG_CELL = re.compile(r"<td([^>]*)>(?=(?:<(?!/td>)[^>]*>|[^<]){30})")  # a phrase, which a narrow column would chop
_OUTSIDE = re.compile(r"[a-z]+:|//|#")


@dataclass(frozen=True)
class Site:
    """The site that was built.

    Attributes:
        folder: folder of the site.
        pages: the HTML files, relative to the folder.
        lost: "PAGE: TARGET" for each link that leads nowhere; on the page it is plain text.
    """

    folder: Path
    pages: tuple[str, ...]
    lost: tuple[str, ...]


def build_site(root: str | Path = ".", reports: str | Path = "reports", out: str | Path = "site") -> Site:
    """Put the pages of the reports, README, docs and what they link to into a folder.

    Args:
        root: folder of the checkout.
        reports: folder of the reports; its ``index.html`` becomes the first page.
        out: folder of the site; the files of an earlier site there are deleted.

    Raises:
        FileNotFoundError: there are no reports yet.
        ValueError: the folder holds something that is not a site.
    """
    root, reports, out = Path(root), Path(reports), Path(out)
    if not (reports / "index.html").exists():
        raise FileNotFoundError(f"No reports in {reports}: run 'make reports' first, or name another folder.")
    if out.exists() and any(out.iterdir()) and not (out / "index.html").exists():
        raise ValueError(f"{out} holds something that is not a site: choose another folder, or empty it.")
    shutil.rmtree(out, ignore_errors=True)
    texts = [path.relative_to(root) for pattern in TEXTS for path in sorted(root.glob(pattern))]
    places = {str(path): str(path.with_suffix(".html")) for path in texts}
    places |= {f"notebooks/{page.stem}.ipynb": page.name for page in reports.glob("[0-9]*.html")}
    for path in sorted(reports.glob("[0-9]*.*")):
        _copy(path, out / path.name)
    shutil.copytree(reports / "assets", out / "assets")
    menu = _menu(texts)
    links = _Links(root, out, places)
    for text in texts:
        write_whole(out / places[str(text)], _text_page(root, text, links, menu))
    for path in sorted(out.glob("[0-9]*.html")):  # pages of notebooks, whose links are relative to notebooks/
        page = path.read_text()
        write_whole(path, links.follow(page, PurePosixPath("notebooks") / path.name, path.name, only="../"))
    index = (reports / "index.html").read_text()
    write_whole(out / "index.html", index.replace("<header>", f"<header>{_nav(menu, 'index.html')}", 1))
    pages = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.html"))
    return Site(out, tuple(pages), tuple(dict.fromkeys(links.lost)))


def _menu(texts: Sequence[Path]) -> dict[str, str]:
    """Pages of the site's own menu, by title."""
    named = {"Notebooks": "index.html", "README": "README.html"}
    return named | {path.stem.capitalize(): f"docs/{path.stem}.html" for path in texts if path.parent.name == "docs"}


def _nav(menu: dict[str, str], here: str) -> str:
    links = [
        f'<a href="{_from(here, place)}"{" aria-current=page" if place == here else ""}>{title}</a>'
        for title, place in menu.items()
    ]
    return f'<nav class="bar" aria-label="Site">{" ".join(links)}</nav>'


def _from(here: str, place: str) -> str:
    """The address of a place as seen from a page, both relative to the site."""
    return PurePosixPath(relpath(place, str(PurePosixPath(here).parent))).as_posix()


@dataclass
class _Links:
    """Turns links between files of the checkout into links between places of the site."""

    root: Path
    out: Path
    places: dict[str, str]
    lost: list[str] = field(default_factory=list)

    def follow(self, body: str, source: PurePosixPath, here: str, *, only: str = "") -> str:
        """Return the body of a page with its links turned. Linked files are copied; links that lead nowhere are noted.

        Args:
            body: the body as HTML.
            source: the page's source relative to the checkout, to which its links are relative.
            here: the page's place in the site.
            only: beginning of the links to turn; the others stay as they are.
        """

        def turn(match: re.Match[str]) -> str:
            target, _, anchor = html.unescape(match["target"]).partition("#")
            if _OUTSIDE.match(match["target"]) or not target.startswith(only):
                return match[0]
            place = self._place(PurePosixPath(relpath(source.parent / target, ".")).as_posix())
            if place is None:
                self.lost.append(f"{source}: {target}")
                return ""
            return f'{match["name"]}="{_from(here, place)}{f"#{anchor}" if anchor else ""}"'

        return _LINK.sub(turn, body)

    def _place(self, source: str) -> str | None:
        """The place in the site of a file of the checkout, which is copied if needed; None if there is no such file."""
        if source in self.places:
            return self.places[source]
        if source.startswith("..") or not (self.root / source).is_file():
            return None
        _copy(self.root / source, self.out / source)
        return source


def _text_page(root: Path, text: Path, links: _Links, menu: dict[str, str]) -> str:
    """The page of a Markdown file."""
    here = links.places[str(text)]
    body = _LONG_CELL.sub(r'<td class="long"\1>', typeset((root / text).read_text(), markdown2html))
    body = links.follow(body, PurePosixPath(text.as_posix()), here)
    title = re.search(r"<h1[^>]*>(.*?)(<a|</h1>)", body, re.DOTALL)
    name = re.sub("<[^>]+>", "", title[1]) if title else text.stem
    style = (Path(__file__).parent / "page.css").read_text() + code_colors()
    return document(name, style, f'{_nav(menu, here)}\n<div class="text"><main>{body}</main></div>')


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def main(reports: str = "reports", out: str = "site") -> None:
    """Build the site and print a summary."""
    site = build_site(reports=reports, out=out)
    for line in site.lost:
        print(f"This link leads nowhere and is left out: {line}")
    print(f"Open {site.folder / 'index.html'}: {len(site.pages)} pages.")


if __name__ == "__main__":
    main(*sys.argv[1:])
