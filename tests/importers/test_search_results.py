"""The search's summary file: blocks whole, cut, repeated and mixed."""

import pytest

from kdfast.distill.schedules import RunConfig
from kdfast.store.grid import grid
from tests.importers.imports import BOTH, CONSTANT, jobs_of_the_study, quietly, warned
from tests.report.study_logs import HEADER, Job, block, summary_text


def test_the_summary_file_gives_its_own_figures_back(tmp_path):
    jobs = jobs_of_the_study()
    path = tmp_path / "hyperparameter_search_results.txt"
    path.write_text(summary_text(jobs))
    table = quietly(path, tmp_path / "s").results.set_index("run_name")
    assert {name: (row["auc_student"], row["bkg_rej_50"]) for name, row in table.iterrows()} == {
        job.config.name: (job.auc, job.rejection) for job in jobs
    }
    assert table["auc_teacher"].isna().all()


def test_blocks_cut_short_repeated_and_mixed(tmp_path):
    path = tmp_path / "hyperparameter_search_results.txt"
    a, b, c, d = (Job(config, auc=0.81) for config in grid("study")[:4])
    cut = block(a)[: block(a).index("  AUC")]
    text = HEADER + cut + block(b) + block(c) + block(Job(c.config, auc=0.82)) + block(d)
    path.write_text(text)
    study, texts = warned(path, tmp_path / "s")
    table = study.results.set_index("run_name")["auc_student"]
    assert table.to_dict() == {b.config.name: 0.81, c.config.name: 0.82, d.config.name: 0.81}
    assert texts[0] == f"{path}, line 7: the block is incomplete: left out"
    assert "is given again: AUC 0.82" in texts[1]
    assert len(texts) == 2


def lines_of(job):
    """The lines of a block without the blank one before it: Run, T, α, rejection, AUC, Saved, rule."""
    return block(job).strip("\n").split("\n")


@pytest.mark.parametrize(
    "order", ["aabbbbbbbaaaaa", "abababababababab", "abaabbaabbaabb", "abaaaaaabbbbbb", "aaabbbaaaabbbb"]
)
def test_interleaved_blocks_never_give_one_run_the_results_of_another(order, tmp_path):
    a, b = Job(CONSTANT, auc=0.81, rejection=8.0), Job(RunConfig(7.0, 0.9), auc=0.82, rejection=9.0)
    rest = {"a": lines_of(a), "b": lines_of(b)}
    mixed = [rest[job].pop(0) for job in order if rest[job]]
    path = tmp_path / "all.txt"
    path.write_text(HEADER + "\n".join(mixed) + block(Job(BOTH)))
    study, texts = warned(path, tmp_path / "s")
    table = study.results.set_index("run_name")
    assert BOTH.name in table.index
    truth = {job.config.name: (job.auc, job.rejection) for job in (a, b, Job(BOTH))}
    for name, row in table.iterrows():
        assert (row["auc_student"], row["bkg_rej_50"]) == truth[name]
    assert len(texts) >= 1


def test_many_notes_on_one_file_are_counted(tmp_path):
    path = tmp_path / "all.txt"
    path.write_text(HEADER + "Run: x\n" * 60 + block(Job(BOTH)))
    _, texts = warned(path, tmp_path / "s")
    assert len(texts) == 21
    assert texts[-1] == f"{path}: and 40 more warnings"
