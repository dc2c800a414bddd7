"""A Chromium without a window, for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-device-scale-factor=1",
    "--hide-scrollbars",
)


def why_no_browser() -> str | None:
    """What is missing to open a page, or None."""
    if not any(map(shutil.which, NAMES)):
        return f"none of {', '.join(NAMES)} is on PATH"
    if not shutil.which("chromedriver"):
        return "chromedriver is not on PATH"
    return None


@contextmanager
def browser(profile: Path) -> Iterator:
    """A driver of a fresh browser that logs its console and what it asks the network for."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(path for name in NAMES if (path := shutil.which(name)))
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_page_load_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


def resize(driver, width: int, height: int) -> None:
    """Give the page this size in CSS pixels, narrower than any window too."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )


def colour_scheme(driver, scheme: str) -> None:
    """Prefer `light` or `dark`."""
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )


def screenshot(driver, path: Path) -> None:
    """The whole page, not only what is in sight."""
    import base64

    made = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "optimizeForSpeed": True}
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(base64.b64decode(made["data"]))
