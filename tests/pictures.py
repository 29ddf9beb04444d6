"""The two pictures of the README: how the demo's report looks. `make pictures` runs the demo and draws them anew."""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.browser import Browser  # noqa: E402 - found through the path above

_WIDTH, _HEIGHT = 1060, 800
_LIMIT = 150_000  # bytes


def main():
    report = Path(sys.argv[1]) if sys.argv[1:] else ROOT / "experiments" / "demo" / "report.html"
    with tempfile.TemporaryDirectory() as folder:
        browser = Browser(folder)
        for name, section in (("report-leaderboard", None), ("report-labels", "confusion")):
            page = browser.page(report.as_uri(), width=_WIDTH, height=_HEIGHT)
            if section:
                page.value(f"document.getElementById('{section}').scrollIntoView()")
            shot = Path(folder) / f"{name}.png"
            page.screenshot(shot)
            path = ROOT / "docs" / f"{name}.webp"
            path.write_bytes(_small(Image.open(shot).convert("RGB")))
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")
            page.close()
        browser.close()


def _small(image):
    """WebP, as good as the limit allows."""
    for quality in (90, 80, 70, 60, 50):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=6)
        if len(buffer.getvalue()) < _LIMIT:
            return buffer.getvalue()
    raise SystemExit(f"the picture does not fit into {_LIMIT} bytes")


if __name__ == "__main__":
    main()
