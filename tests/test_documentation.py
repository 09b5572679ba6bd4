"""The documentation: its loops run, its links lead somewhere, README stays short."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import kdfast
from kdfast.models.own_model import own_model
from tests.undrawn import undrawn_figures

ROOT = Path(__file__).parents[1]
GENERATED = ("docs/_generated/",)  # made by the build of the documentation


def python_blocks(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/own-training-loop.md"])
def test_loops_with_distill_loss_run(page: str) -> None:
    blocks = [block for block in python_blocks(page) if "distill_loss(" in block]
    assert blocks
    names: dict[str, Any] = {"__name__": page}
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert names["loss"].isfinite()


def test_the_page_of_own_networks_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "own_networks"}
    with undrawn_figures():
        for block in python_blocks("docs/how-to/own-networks.md"):
            if "weaver" not in block:
                exec(compile(block, "own-networks.md", "exec"), names)
    assert (names["study"].results["status"] == "done").all()


def test_the_networks_of_weaver_core_on_that_page_can_be_trained():
    pytest.importorskip("weaver.nn.model.ParticleTransformer")
    names: dict[str, Any] = {"__name__": "own_networks", "torch": torch, "nn": torch.nn, "kdfast": kdfast}
    (block,) = (block for block in python_blocks("docs/how-to/own-networks.md") if "weaver" in block)
    exec(compile(block, "own-networks.md", "exec"), names)
    for name in ("part", "particle_net"):
        assert own_model(names[name]).num_classes == 1


def test_readme_is_a_landing_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


def markdown_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        return []
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.splitlines()]


def test_links_to_files_lead_somewhere() -> None:
    broken = []
    for page in markdown_files():
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:|#", target):
                continue
            path = (page.parent / target.split("#")[0]).resolve()
            inside = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
            if not path.exists() and not inside.startswith(GENERATED):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken, broken


def test_the_citation_names_the_newest_release() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = re.search(r"^version: (\S+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited
    assert cited[1] == released[0]
