"""A real browser for the pages, driven as a person drives it; tests are skipped where there is none."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

PATIENCE_S = 60.0
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def browser(width: int = 1200, height: int = 1000) -> Iterator[Chrome]:
    """Chromium without a window."""
    pytest.importorskip("selenium", reason="no selenium: pip install '.[browser]'")
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip("no chromium and chromedriver on this machine")
    options = ChromeOptions()
    options.binary_location = found
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    arguments = ["--headless=new", f"--window-size={width},{height}", "--disable-gpu", "--disable-dev-shm-usage"]
    # Its sandbox refuses to run as root, as in most containers.
    for argument in [*arguments, *(["--no-sandbox"] if os.geteuid() == 0 else [])]:
        options.add_argument(argument)
    chrome = Chrome(options=options, service=Service(driver))
    try:
        yield chrome
    finally:
        chrome.quit()


class Person:
    """Someone before the browser: looks at what is shown, and uses the keyboard alone."""

    def __init__(self, chrome: Chrome) -> None:
        self.chrome = chrome

    def sees(self, text: str) -> None:
        """Wait until a text is shown."""
        self.until(lambda: text in self.page, f"{text!r} is not shown")

    @property
    def page(self) -> str:
        """All that is shown, what is typed into fields left out."""
        return str(self.chrome.execute_script("return document.body.innerText"))

    def until(self, is_so: Callable[[], Any], what: str) -> None:
        """Poll until something is true."""
        ends = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < ends, f"{what}; the page shows:\n{self.page}\n{self.new_complaints()}"
            time.sleep(0.05)

    def types(self, *keys: str) -> None:
        """Type into whatever has the focus."""
        from selenium.webdriver import ActionChains

        ActionChains(self.chrome).send_keys(*keys).perform()

    def presses_with_control(self, key: str) -> None:
        """Ctrl and another key."""
        from selenium.webdriver import ActionChains, Keys

        ActionChains(self.chrome).key_down(Keys.CONTROL).send_keys(key).key_up(Keys.CONTROL).perform()

    def tabs_to(self, label: str) -> None:
        """Press Tab until the field or button of that name has the focus."""
        from selenium.webdriver import Keys

        for _ in range(80):
            if self.focused == label:
                return
            self.types(Keys.TAB)
        raise AssertionError(f"Tab never leads to {label!r}; it is at {self.focused!r}\n{self.page}")

    def empties(self) -> None:
        """Delete what stands in the field that has the focus."""
        from selenium.webdriver import Keys

        self.presses_with_control("a")
        self.types(Keys.DELETE)

    @property
    def focused(self) -> str:
        """The name of what has the focus, as it is read aloud."""
        return str(self.chrome.switch_to.active_element.accessible_name).strip()

    @property
    def told(self) -> str:
        """What the field that has the focus is described by: what is wrong with its value."""
        script = "return document.getElementById(document.activeElement.getAttribute('aria-describedby'))?.innerText"
        return str(self.chrome.execute_script(script))

    def new_complaints(self) -> list[str]:
        """What the browser complained about since it was asked last, refused scripts and frames among it."""
        return [str(entry["message"]) for entry in self.chrome.get_log("browser")]
