"""Makes docs/figures/gallery/ from a study's figures, and docs/figures/report.png, a picture of its report.

usage: python docs/make_gallery.py STUDY…      the demo: kdfast sweep --out demo, for the figure of races the same with
                                              --search race, and for that of latency the one that reference/figures.md
                                              names; the picture, of the first one, needs chromium
"""

import io
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

FIGURES = Path(__file__).parent / "figures"
WIDTH = 1100  # pixels; a page of the documentation is narrower


def shrink(picture: bytes, path: Path) -> None:
    """Writes a PNG of at most WIDTH pixels and 64 colours, which plots need no more than."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    if image.width > WIDTH:
        image = image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)
    image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def screenshot(page: Path) -> bytes:
    """The top of report.html as a browser shows it."""
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "page.png")
        browser = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        window = ["--window-size=1100,1000", "--force-device-scale-factor=1.5", f"--screenshot={shot}"]
        subprocess.run([*browser, *window, page.resolve().as_uri()], check=True, capture_output=True, timeout=120)
        return shot.read_bytes()


def main(studies: list[Path]) -> None:
    gallery = FIGURES / "gallery"
    shutil.rmtree(gallery, ignore_errors=True)
    gallery.mkdir(parents=True)
    figures = {figure.name: figure for study in reversed(studies) for figure in (study / "figures").glob("*.png")}
    for name, figure in figures.items():
        shrink(figure.read_bytes(), gallery / name)
    if shutil.which("chromium"):
        shrink(screenshot(studies[0] / "report.html"), FIGURES / "report.png")


if __name__ == "__main__":
    main([*map(Path, sys.argv[1:])])
