"""Which chromium, how it is started, and the watch on what its pages do."""

import shutil
from dataclasses import dataclass, field

from playwright.sync_api import Browser, BrowserContext, Page, Request

REQUIRED = ("CI", "DEQFLOW_REQUIRE_BROWSER")  # where a missing browser is a failure
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


@dataclass
class Watch:
    """What a page must not do: raise an error, or ask for anything outside of ``inside``."""

    inside: tuple[str, ...]
    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", self._ask)
        page.on("websocket", lambda socket: self._note(socket.url))

    def _ask(self, request: Request) -> None:
        self._note(request.url)

    def _note(self, url: str) -> None:
        if not url.startswith((*self.inside, "data:", "blob:")):
            self.outside.append(url)

    def check(self) -> None:
        assert not self.errors
        assert not self.outside


def open_page(browser: Browser | BrowserContext, watch: Watch, address: str, **options) -> Page:
    """A page under watch."""
    page = browser.new_page(**options)
    page.set_default_timeout(20_000)
    watch.follow(page)
    page.goto(address)
    return page
