"""Sphinx settings of the documentation. `bash ci/docs` builds it; nothing here needs the network."""

import re
import shutil
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import logging

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "python")]

import generate  # noqa: E402  # beside this file

from kdfast import __version__  # noqa: E402

LOGGER = logging.getLogger(__name__)
project = "kdfast"
author = "The kdfast developers"
copyright = author
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "_generated", "**/.ipynb_checkpoints"]
suppress_warnings = ["mystnb.unknown_mime_type"]

# Docstrings: NumPy style. Types are in the signatures; the text gives shapes and units.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True  # attributes as a list: members are documented already
napoleon_custom_sections = [("Environment", "notes_style")]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the notebook is stored with its outputs; ci/examples runs it

html_theme = "pydata_sphinx_theme"
html_title = f"kdfast {version}"
html_static_path = ["_static"]
html_css_files = ["kdfast.css"]
html_show_sourcelink = False
html_theme_options = {
    "github_url": generate.repository(),
    "logo": {"text": "kdfast"},
    "navigation_with_keys": False,
    "show_toc_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "pygments_light_style": "default",
    "pygments_dark_style": "github-dark",
}
html_sidebars = {"index": [], "changelog": []}

# Links from a page to files outside docs/ work on the forge as they are; on the site they lead back to the forge.
OUTSIDE = re.compile(r"(?<!!)(\[[^\]]*\])\((?:\.\./)+((?:bench|ci|csrc|python|tests|examples)/[^)\s]*)\)")


def _link_to_the_forge(app: Sphinx, docname: str, source: list[str]) -> None:
    source[0] = OUTSIDE.sub(rf"\1({generate.repository()}/blob/main/\2)", source[0])


def _write_generated_pages(app: Sphinx) -> None:
    generated = HERE / "_generated"
    shutil.rmtree(generated, ignore_errors=True)
    generated.mkdir()
    for name, text in generate.pages().items():
        (generated / name).write_text(text, encoding="utf-8")
    for name in generate.undocumented():
        LOGGER.warning("the API reference says nothing of %s", name)
    shutil.copyfile(ROOT / "examples" / "tour.ipynb", HERE / "tutorial" / "tour.ipynb")


def _escape_bars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """|x| is an absolute value in docstrings, where reST would look for a substitution."""
    for place, line in enumerate(lines):
        if "``" not in line and not line.lstrip().startswith((">>>", "...")):
            lines[place] = re.sub(r"\|(?=\S)(.+?)(?<=\S)\|", r"\\|\1\\|", line)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", _escape_bars)
    app.connect("builder-inited", _write_generated_pages)
    app.connect("source-read", _link_to_the_forge)
