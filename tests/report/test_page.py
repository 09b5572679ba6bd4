"""report.html as text: whole, self-contained, accessible, and with the analysis' numbers."""

import json
import re
import shlex
import sys
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest

from kdfast.distill import schedules
from kdfast.distill.schedules import RunConfig
from kdfast.report.analysis import analyse
from kdfast.report.figures import ORDER
from kdfast.report.page import MOST_CURVES, explorer, page, page_files
from kdfast.report.schema import Analysis
from kdfast.store.settings import StudySettings
from kdfast.store.store import StudyStore
from kdfast.study.imports import import_study
from tests.report.fake_study import PROVENANCE, SETTINGS, SMALL_GRID, make_study
from tests.report.study_logs import Job, write_logs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Elements of a page, checked for nesting on the way: `found` has (tag, attributes, text)."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.found, self.stack = [], []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        element = (tag, dict(attributes), [])
        self.found.append(element)
        if tag not in VOID:
            self.stack.append(element)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.stack, tag
        assert self.stack[-1][0] == tag
        self.stack.pop()

    def handle_data(self, data):
        for _, _, text in self.stack:
            text.append(data)

    def all(self, tag, **attributes):
        return [
            (own, "".join(text).strip())
            for name, own, text in self.found
            if name == tag and all(own.get(key.rstrip("_")) == value for key, value in attributes.items())
        ]


@pytest.fixture(scope="module")
def text(report_page):
    return report_page.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html(text):
    return Page(text)


def rows_of(html, text, table):
    """The cells of a table's body, as (shown, sorted by)."""
    inside = text[text.index(f'id="{table}"') :]
    inside = inside[inside.index("<tbody>") : inside.index("</tbody>")]
    rows = []
    for row in inside.split("<tr>")[1:]:
        cells = re.findall(r"<t[dh]([^>]*)>(.*?)</t[dh]>", row, re.DOTALL)
        values = [re.search(r'data-value="([^"]*)"', attributes) for attributes, _ in cells]
        rows.append([(shown, value and value[1]) for (_, shown), value in zip(cells, values, strict=True)])
    return rows


def test_it_is_one_self_contained_file(html, text):
    for tag, attributes, _ in html.found:
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            if name in attributes:
                assert attributes[name].startswith(("#", "data:")), (tag, attributes)
        assert tag not in ("iframe", "object", "embed", "form")
    assert not re.search(r"@import|url\((?!#)", text)
    ((policy, _),) = html.all("meta", http_equiv="Content-Security-Policy") or [({"content": ""}, "")]
    assert "default-src 'none'" in text
    assert policy is not None


def test_ids_and_references(html):
    ids = [attributes["id"] for _, attributes, _ in html.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes, _ in html.found:
        for name in ("aria-labelledby", "aria-describedby"):
            for target in attributes.get(name, "").split():
                assert target in ids, (tag, name, target)
        if tag == "a":
            assert attributes["href"][1:] in ids
        if "data-status" in attributes:
            assert attributes["data-status"] in ids


def test_figures_have_text_alternatives_and_captions(html):
    figures, captions = html.all("figure"), html.all("figcaption")
    drawn = len(ORDER) - 1  # it was no race
    assert len(figures) == len(captions) == drawn
    assert all(text for _, text in captions)
    assert len(html.all("desc")) == drawn
    assert all(len(text) > 10 for _, text in html.all("desc"))


def test_headings_do_not_skip_a_level(html):
    levels = [int(tag[1]) for tag, _, _ in html.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_names_are_text(html, text):
    (heading,) = html.all("h1")
    assert heading[1] == "a <b>bold & study"
    assert "<b>" not in text


HOSTILE = [
    "</script><script>hacked = 1</script>",
    "<!--<script>",
    "\u2028\u2029",
    "<img src=x onerror='hacked=1'>",
    "__proto__",
]


def with_names(analysis, names):
    """The analysis, with these as the names of its first configurations, as an import may have any."""
    text = analysis.model_dump_json()
    for row, name in zip(analysis.configurations, names, strict=False):
        text = text.replace(json.dumps(row.run_name), json.dumps(name))
    return Analysis.model_validate_json(text)


def test_the_explorer_s_data(analysis):
    """The runs in the order of their table, whatever their names, and their curves."""
    analysis = with_names(analysis, HOSTILE)
    shown = Page(page(analysis, []))
    (found,) = shown.all("script", id="explorer-data")
    data = json.loads(found[1])
    assert data["names"] == [schedules.shown(run.run_name) for run in analysis.runs]
    assert set(HOSTILE) <= set(data["names"])
    assert len(shown.all("script")) == 3
    axes = {axis["key"]: axis["values"] for axis in data["axes"]}
    assert list(axes)[-3:] == ["auc", "rejection", "auc_gain"]
    for i, run in enumerate(analysis.runs):
        assert axes["temp_init"][i] == run.temp_init
        assert axes["temp_final"][i] == (run.temp_init if run.temp_final is None else run.temp_final)
        assert axes["auc"][i] == (None if run.auc is None else round(run.auc.value, 5))
        curve = np.cumsum(data["curves"]["auc_val"]["values"][i]) / 1e4
        np.testing.assert_allclose(curve, run.curves.get("auc_val", []), atol=0.6e-4)


def test_learning_curves_with_gaps_and_of_many_runs(analysis):
    first, *others = analysis.runs
    runs = [first.model_copy(update={"curves": {"auc_val": [0.5, None, 0.75], "epoch": [5, 10, 15]}}), *others]
    data = json.loads(str(explorer(analysis.model_copy(update={"runs": runs})).json))
    assert data["curves"]["auc_val"]["values"][0] == [5000, None, 2500]
    assert data["epochs"][0] == [5, 10, 15]
    many = explorer(analysis.model_copy(update={"runs": analysis.runs * (MOST_CURVES // len(analysis.runs) + 1)}))
    assert many.curves_left_out
    assert json.loads(str(many.json))["curves"] == {}


def test_headline(html, analysis):
    cards = [text for attributes, text in html.all("li") if "card" in attributes.get("class", "")]
    assert len(cards) == 3
    for card, network in zip(cards, analysis.networks, strict=True):
        digits = 4 if network.auc.error < 0.01 else 3  # two digits of the error
        assert (
            f"{network.auc.value:.{digits}f} ± {network.auc.error:.{digits}f} [{network.auc.low:.{digits}f}, " in card
        )


def test_the_table_of_configurations(html, text, analysis):
    rows = rows_of(html, text, "configurations-table")
    heads = [t for t in html.all("th", scope="col")]
    assert heads
    assert len(rows) == len(analysis.configurations)
    for cells, row in zip(rows, analysis.configurations, strict=True):
        assert len(cells) == 14
        assert cells[1][0] == schedules.shown(row.run_name)
        assert cells[5] == (f"{row.auc.value:.4f} ± {row.auc.error:.4f}", str(row.auc.value))
        assert cells[8][1] == str(row.rejection.value)
        assert cells[11][0] == ("yes" if row.in_best_set_auc else "no")


def test_the_table_of_runs(html, text, analysis):
    rows = rows_of(html, text, "runs-table")
    assert [(cells[0][0], cells[1][0]) for cells in rows] == [
        (schedules.shown(run.run_name), str(run.seed)) for run in analysis.runs
    ]
    assert sum(run.status == "diverged" for run in analysis.runs) == 2
    for cells, run in zip(rows, analysis.runs, strict=True):
        done = run.status == "done"
        assert cells[3][1] == (str(run.auc.value) if done else "")
        assert cells[-1][0].strip() == ("done" if done else "diverged: the loss is NaN in epoch 2")


def test_tables_have_as_many_cells_as_heads(text):
    for table in re.findall(r"<table.*?</table>", text, re.DOTALL):
        head = len(re.findall("<th ", table[: table.index("</thead>")]))
        for row in table[table.index("<tbody>") :].split("<tr>")[1:]:
            assert len(re.findall("<t[dh][ >]", row)) == head


def test_what_it_takes_to_reproduce_it(html, text):
    shown = [t for _, t in html.all("pre")]
    assert shown[0] == "kdfast sweep --config study.toml --out again"
    assert "seeds = [" in shown[-2]
    assert '"0123abcd"' in shown[-1]


def test_the_command_to_reproduce_it_is_one_for_a_shell(analysis):
    paths = ["/data/my jets/train 1.h5", "it's.h5", "more*.h5"]
    study = analysis.study.model_copy(update={"settings": {**analysis.study.settings, "data": {"paths": paths}}})
    html = Page(page(analysis.model_copy(update={"study": study}), []))
    shown = html.all("pre")[0][1]
    assert shlex.split(shown) == ["kdfast", "sweep", *paths, "--config", "study.toml", "--out", "again"]
    assert "'more*.h5'" in shown  # a pattern that kdfast sees, not the shell


def test_what_it_takes_to_reproduce_a_refinement(tmp_path):
    """The settings, and those of the runs that they do not ask for, are all runs."""
    configs = [RunConfig(3.0, 0.5), RunConfig(7.0, 0.5), RunConfig(7.0, 0.9)]
    lists = {"temperature": [3.0, 7.0], "alpha": [0.5, 0.9]}
    StudyStore.create_or_open(tmp_path / "s", {"grid": lists, "seeds": [1, 2]}, PROVENANCE)
    for chosen, seeds in (([*configs, RunConfig(3.0, 0.9)], (1, 2)), (configs[:2], (3, 4)), (configs[2:], (3,))):
        path = tmp_path / f"seed{seeds[0]}{len(chosen)}"
        for result in make_study(path, chosen, seeds=seeds, jets=60).results():
            stored = StudyStore.open(tmp_path / "s")
            for split in ("validation", "test"):
                stored.write_shared(split, StudyStore.open(path).shared(split))
            if result.kind == "student":
                stored.write(result)
    analysis = analyse(StudyStore.open(tmp_path / "s"))
    assert analysis.study.seeds == [1, 2, 3, 4]
    shown = [t for _, t in Page(page(analysis, [])).all("pre")]
    assert shown[0] == "kdfast sweep --config study.toml --out again"
    added = [tomllib.loads(text) for text in shown[1:3]]
    settings = tomllib.loads(shown[3])
    asked = [
        (config.name, seed)
        for change in ({}, *added)
        for resolved in [StudySettings.resolve({**settings, **change}, data_given=True)]
        for config in resolved.runs()
        for seed in resolved.seeds
    ]
    assert sorted(asked) == sorted((run.run_name, run.seed) for run in analysis.runs)


def test_findings_and_what_is_missing(analysis, html, text):
    for item in analysis.missing:
        assert any(
            schedules.shown(item.what) in t and t.endswith(schedules.shown(item.reason.replace("`", "")))
            for _, t in html.all("li")
        )
    for finding in analysis.findings:
        assert any(finding.text == t for _, t in html.all("li"))


def test_the_same_analysis_gives_the_same_page(analysis):
    again = Analysis.model_validate_json(analysis.model_dump_json())
    assert page(again, []) == page(analysis, [])


def test_lower_limits(tmp_path):
    """40 jets: in places no background survives."""
    analysis = analyse(make_study(tmp_path / "s", [RunConfig(3.0, 0.5)], jets=40))
    assert any(estimate.lower_limit for network in analysis.networks for estimate in network.rejection.values())
    text = page(analysis, [])
    Page(text)
    assert "<strong>&gt; " in text
    assert "68 % lower limit" in text
    assert not re.search(r"\bnan\b|\binf\b", text)


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_imported_study(tmp_path, jobs):
    study = import_study(write_logs(tmp_path / "logs", [Job(config) for config in SMALL_GRID[:jobs]]), tmp_path / "s")
    store = StudyStore.open(study.path)
    html = Page(page_files(analyse(store), store)["report.html"].decode())
    hashes = [file["sha256"] for file in study.imported["files"]]
    cells = [text for _, text in html.all("td")]
    assert all(digest in cells for digest in hashes)
    heads = [text for _, text in html.all("th", scope="col")]
    assert "AUC" in heads
    assert not any(head == "Δ AUC" or head.startswith(("p (", "In the best set", "In the set")) for head in heads)
    assert not any(text.startswith("kdfast sweep") for _, text in html.all("pre"))


def test_an_empty_study(tmp_path):
    store = StudyStore.create_or_open(tmp_path / "s", SETTINGS, PROVENANCE)
    html = Page(page_files(analyse(store), store)["report.html"].decode())
    assert any("No network of this study has finished yet" in text for _, text in html.all("p"))
    assert html.all("figure") == []
