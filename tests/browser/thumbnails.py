"""The pictures of the README's table of notebooks: the cover of each report page, as it looks in chromium.

After ``make reports``: ``.venv/bin/python tests/browser/thumbnails.py [reports [reports/published]]``.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
from chrome import CHROMIUM, QUIET
from playwright.sync_api import Page, sync_playwright

WIDTH = 960  # of a thumbnail, in pixels
COVER = ".celltag_cover .jp-OutputArea-output"


def photograph(page: Page, path: Path) -> np.ndarray:
    """The cover of a report page, (H, W, 3) uint8: its plot where there is one, else its picture."""
    page.goto(path.absolute().as_uri())
    outputs = page.locator(COVER)
    outputs.first.wait_for()
    page.wait_for_timeout(2000)  # plots are drawn after the page has loaded
    drawn = outputs.locator(".js-plotly-plot, img")
    image = cv2.imdecode(np.frombuffer(drawn.first.screenshot(), np.uint8), cv2.IMREAD_COLOR)
    scale = min(1.0, WIDTH / image.shape[1])
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def main(reports: str = "reports", out: str = "reports/published") -> None:
    """Write ``NAME.jpg`` for each ``NAME.html`` of a notebook."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        page = browser.new_page(viewport={"width": 1200, "height": 900}, device_scale_factor=2)
        for path in sorted(Path(reports).glob("[0-9][0-9]_*.html")):
            if not path.stem.endswith(".failed"):
                cv2.imwrite(f"{out}/{path.stem}.jpg", photograph(page, path), [cv2.IMWRITE_JPEG_QUALITY, 85])
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
