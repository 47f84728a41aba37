"""Pictures of the page for the README, of a service: ``python docs/make_screenshots.py URL SAMPLE``."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import PIL.Image
from playwright.sync_api import Page, sync_playwright

OUT = Path(__file__).parent / "pictures"


def shot(page: Page, name: str, *, full: bool = False) -> None:
    """Keep what is seen, as a JPEG."""
    picture = PIL.Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB")
    picture.save(OUT / f"{name}.jpg", quality=86)


def main(url: str, sample: str) -> None:
    """Explain a sample in the light, and doubt it in the dark."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for theme in ("light", "dark"):
            context = browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme=theme)
            page = context.new_page()
            page.goto(url)
            page.get_by_role("button", name=f"Try the sample {sample}").first.click()
            page.wait_for_selector("#scores button")
            page.wait_for_timeout(800)
            if theme == "light":
                page.locator("#canvas").focus()
                page.keyboard.press("ArrowLeft")
                page.wait_for_timeout(300)
                shot(page, "page")
            else:
                page.locator("#tab-sweep").click()
                page.get_by_role("button", name="Sweep the blocks").click()
                page.locator("#swept button").nth(4).wait_for()
                page.wait_for_timeout(500)
                shot(page, "page_dark", full=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
