"""The examples of docs/how-to/own-models.md run, one after the other, and do what the page says."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "own-models.md"


@pytest.mark.slow
def test_the_page_runs(capsys: Any) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {"__name__": "own_models"}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert "AUC of the student on 1000 jets of the trigger's view: 0." in capsys.readouterr().out
    assert 0.85 < names["auc"] < 1

    with torch.no_grad():
        block, x, mask = names["block"].eval(), names["x"], names["mask"]
        offsets = torch.tensor([0, *mask.sum(1)]).cumsum(0)
        torch.testing.assert_close(block(x, mask=mask)[mask], block(x[mask], offsets))
