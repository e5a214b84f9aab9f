"""The site in a real chromium without a network: pages open, and the menu leads from one to the next."""

import pytest
from chrome import Watch, open_page
from lab.test_site import ROOT, make_reports
from playwright.sync_api import expect

from deqflow.lab.reports.site import build_site

OVERFLOW = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    return build_site(ROOT, make_reports(folder / "reports"), folder / "site").folder


@pytest.fixture(scope="module")
def page(browser, site):
    watch = Watch((site.as_uri(),))
    context = browser.new_context(offline=True, viewport={"width": 1100, "height": 800})
    yield open_page(context, watch, (site / "index.html").as_uri())
    watch.check()
    context.close()


def test_the_menu_leads_through_the_site(page):
    menu = page.get_by_role("navigation", name="Site")
    for title, heading in (("README", "deqflow"), ("Glossary", "Glossary"), ("Notebooks", "deqflow")):
        menu.get_by_role("link", name=title).click()
        expect(page.get_by_role("heading", level=1)).to_contain_text(heading)
        expect(menu.get_by_role("link", name=title)).to_be_visible()


@pytest.mark.parametrize("name", ["index", "README", "docs/glossary", "docs/measured", "docs/using"])
def test_pages_fit_a_narrow_screen_and_show_their_images(page, site, name):
    page.goto((site / f"{name}.html").as_uri())
    for width in (400, 1100):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate(OVERFLOW) <= 0
    assert (
        page.evaluate("() => [...document.images].filter(image => image.complete && !image.naturalWidth).length") == 0
    )
