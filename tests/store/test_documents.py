"""Documents of any content, with the right checksums: a typed error or an answer, and no traceback."""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdfast import report
from kdfast.errors import KdfastError, StudyError
from kdfast.report.analysis import analyse
from kdfast.report.rendering import report_texts
from kdfast.report.two_studies import compare
from kdfast.store.attempts import Attempt
from kdfast.store.claims import Claims
from kdfast.store.folders import manifest_bytes
from kdfast.store.key import RunKey
from kdfast.store.packs import PlannedPack, write_pack
from kdfast.store.status import study_status
from kdfast.store.store import StudyStore
from kdfast.store.verify import verify
from kdfast.study.results import open_study
from tests.report.fake_study import SMALL_GRID, make_study

DEEP: Any = "deep"
for _ in range(50):
    DEEP = [DEEP]

# What replaces a value: other types, null, nesting, and numbers that no column of a table holds.
VALUES = [None, True, "text", "", -1, 0, 1.5, 10**30, 1e308, -1e308, [], [None], {}, {"a": {"b": 1}}, DEEP, "\x00", "²"]
LITERALS = ["NaN", "Infinity", "1e999", '"\\ud800"']  # that json.dumps writes not, or not so
PLACEHOLDER = "in place of a literal"


def places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all values of a document; of a list, to its first two."""
    yield at
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*at, key))
    elif isinstance(document, list):
        for number, value in enumerate(document[:2]):
            yield from places(value, (*at, number))


def changed(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    """A copy in which the value at a place is another one."""
    if not at:
        return value
    copy = document.copy()
    copy[at[0]] = changed(document[at[0]], at[1:], value)
    return copy


def removed(document: Any, at: tuple[Any, ...]) -> Any:
    """A copy without the value at a place."""
    copy = document.copy()
    if len(at) == 1:
        del copy[at[0]]
    else:
        copy[at[0]] = removed(document[at[0]], at[1:])
    return copy


def mutations(document: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Each value replaced, removed, or with something added: what was done, and the new content."""
    for at in places(document):
        name = ".".join(map(str, at))
        for value in VALUES:
            yield f"{name} = {str(value)[:20]!r}", json.dumps(changed(document, at, value)).encode()
        for literal in LITERALS:
            text = json.dumps(changed(document, at, PLACEHOLDER))
            yield f"{name} = {literal}", text.replace(f'"{PLACEHOLDER}"', literal).encode()
        if at:
            yield f"{name} removed", json.dumps(removed(document, at)).encode()
        inside = document
        for key in at:
            inside = inside[key]
        if isinstance(inside, dict):
            yield f"{name} with more", json.dumps(changed(document, at, inside | {"more": [1]})).encode()
        elif isinstance(inside, list):
            yield f"{name} with more", json.dumps(changed(document, at, [*inside, *inside, None])).encode()
    yield "empty", b""
    yield "no UTF-8", b"\xff\xfe"
    yield "cut off", json.dumps(document).encode()[:-2]


def put(file: Path, content: bytes) -> None:
    """Writes a file of a folder with a manifest, and the checksum that belongs to it."""
    file.write_bytes(content)
    manifest = file.parent / "manifest.json"
    if file == manifest or not manifest.exists() or file.suffix == ".claim":
        return
    names = json.loads(manifest.read_bytes())["files"]
    manifest.write_bytes(manifest_bytes({name: (file.parent / name).read_bytes() for name in names}))


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A study with a document of each kind, and another one of the same jets."""
    folder = tmp_path_factory.mktemp("documents")
    decisive = {"data": {"fingerprint": "f" * 64, "seed": 42}, "recipe": {"epochs": 3}}
    provenance = {
        "decisive": decisive,
        "environment": {"kdfast": "1", "device": "cpu"},
        "given": ["jets"],
        "imported": {"files": [{"path": "a.out", "bytes": 7, "sha256": "0" * 64}], "notes": ["a note"]},
    }
    plain = {name: provenance[name] for name in ("decisive", "environment")}
    stores = [make_study(folder / name, list(SMALL_GRID)[:3], jets=60, provenance=plain) for name in ("one", "two")]
    imported = make_study(folder / "imported", list(SMALL_GRID)[:1], jets=60, provenance=provenance)
    key = RunKey.of(SMALL_GRID[0], 42)
    for store in (*stores, imported):
        write_pack(store, PlannedPack("seed42.000", 42, (None, *list(SMALL_GRID)[:2]), 2, 3.0))
        store.write_attempt(Attempt.failed("seed42.000", ValueError("what went wrong"), [key], threads=2))
        Claims(store.path / "claims").take("seed42.000")
    return stores[0].path, stores[1].path, imported.path


def documents(study: Path) -> list[Path]:
    results = study / "results"
    files = [next(results.glob(f"{kind}.*")) / "result.json" for kind in ("teacher", "baseline", "student")]
    files += [next(results.glob("student.*")) / "manifest.json", study / "shared" / "test" / "manifest.json"]
    files += [study / "packs" / "seed42.000" / "pack.json", study / "attempts" / "seed42.000.001" / "attempt.json"]
    return [
        *files,
        study / "claims" / "seed42.000" / "000001.claim",
        study / "provenance.json",
        study / "manifest.json",
    ]


def read_in_every_way(study: Path, other: Path, *, slowly: bool) -> None:
    """What the commands do; an error of one does not keep the others from being tried."""
    attempts = [
        lambda: open_study(study).results,
        lambda: open_study(study).best("combined"),
        lambda: study_status(StudyStore.open(study)).to_json(),
        lambda: verify(study),
        lambda: report_texts(analyse(StudyStore.open(study))),
        lambda: compare(StudyStore.open(study), StudyStore.open(other)),
        lambda: Claims(study / "claims").take("seed42.000"),
    ]
    if slowly:
        attempts.append(lambda: report.write(StudyStore.open(study), study.with_name("report")))
    for attempt in attempts:
        with contextlib.suppress(KdfastError):
            attempt()


def is_usable(study: Path) -> bool:
    try:
        StudyStore.open(study).results()
    except StudyError:
        return False
    return True


def try_all(original: Path, other: Path, study: Path, number: int, every: int) -> str:
    """Tries each mutation of a document whose number is a multiple of `every`; says how many."""
    shutil.copytree(original, study)
    file = documents(study)[number]
    before = {path: path.read_bytes() for path in (file, file.parent / "manifest.json") if path.exists()}
    tried = usable = 0
    for what, content in list(mutations(json.loads(before[file].partition(b"\n...")[0])))[number % every :: every]:
        put(file, content)
        readable = is_usable(study)
        tried += 1
        usable += readable
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_in_every_way(study, other, slowly=readable and usable % REPORTED == 1)
        except Exception as error:
            raise AssertionError(f"{file.name}: {what}: {error!r}") from error
        for path, kept in before.items():
            path.write_bytes(kept)
        for claim in (study / "claims" / "seed42.000").glob("*.claim"):
            if claim != file and claim.name != "000001.claim":
                claim.unlink()
    assert tried
    return f"{file.relative_to(study)}: {tried} mutations, {usable} of them still readable"


REPORTED = 25  # a report takes seconds: one is written for every 25th readable document
CASES = [(0, number) for number in range(10)] + [(2, 8)]  # which study, and of its documents
MORE = 1 if os.environ.get("KDFAST_MUTATIONS") == "all" else 4


@pytest.mark.parametrize("every", [47, pytest.param(MORE, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("which", "number"), CASES)
def test_mutations(studies, tmp_path, which, number, every):
    print(try_all(studies[which], studies[1], tmp_path / "study", number, every))
