"""A Chromium that is there already, for whoever looks at the pages with Playwright, which downloads none."""

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # with one it does not start as root, and it sees no page but ours
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str | None:
    """Its path, or None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)
