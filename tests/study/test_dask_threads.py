"""A sweep by Dask workers that are threads of this process: quick. tests/study/test_dask_engine.py has real ones."""

from distributed import Client, LocalCluster

from kdfast.store.table import csv_text
from tests.study.small_sweep import small_sweep


def test_the_same_table_as_without_dask(tmp_path, swept):
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        on_dask = small_sweep(tmp_path / "dask", client=client, pack_size=2)
    assert csv_text(on_dask.results) == csv_text(swept.results)
