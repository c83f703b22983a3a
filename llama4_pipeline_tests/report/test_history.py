"""The history of measurements: kept whole by any number of writers, and judged against the nights before."""

import hashlib
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from llama4_pipeline.artifacts.location import history_directory
from llama4_pipeline.artifacts.manifest import Manifest
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.errors import InputError
from llama4_pipeline.metrics.measurement import Measurement
from llama4_pipeline.report.history import append, compare, read
from llama4_pipeline.report.history_plot import series
from llama4_pipeline.report.plots import to_png
from llama4_pipeline_tests.report.conftest import invent

_TONIGHT = datetime(2026, 11, 23, 2, tzinfo=UTC)


def _manifest(when: datetime = _TONIGHT, cpu: str = "one") -> Manifest:
    recipe = Recipe(stage="benchmarks", model="tiny", code_version="c0de", machine={"cpu": cpu})
    created = when.isoformat()
    digest = hashlib.sha256(f"{created}{cpu}".encode()).hexdigest()
    return Manifest(recipe=recipe, key="", digest=digest, files=(), bytes=0, seconds=1, created=created)


def _int4(milliseconds: float) -> list[Measurement]:
    return [invent("ONNX Runtime INT4", "int4", milliseconds, 1_000)]


def _nights(
    directory: Path, p50s: Iterable[float], *, cpu: str = "one", step: timedelta = timedelta(1)
) -> str:
    """Appends a series that ends tonight; returns the digest of the last."""
    series = list(p50s)
    for back, milliseconds in zip(range(len(series) - 1, -1, -1), series, strict=True):
        manifest = _manifest(_TONIGHT - back * step, cpu)
        append(str(directory), _int4(milliseconds), manifest)
    return manifest.digest


@pytest.mark.parametrize("name", ["llama [v2] * ö", "run::1"])
def test_a_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name / "history"
    append(str(directory), _int4(7.0), _manifest())
    assert len(read(str(directory))) == len(list(directory.iterdir())) == 1


def test_pandas_reads_the_directory_whatever_was_measured(
    tmp_path: Path, measurements: list[Measurement]
) -> None:
    append(str(tmp_path), measurements, _manifest(_TONIGHT - timedelta(1)))
    file = append(str(tmp_path), _int4(7.0), _manifest(), random_weights=True)
    before = Path(file).stat()
    assert append(str(tmp_path), _int4(9.0), _manifest()) == file
    assert Path(file).stat() == before, "once more changes nothing"
    table = pd.read_parquet(tmp_path)
    assert len(table) == len(measurements) + 1
    assert table["measured_at"].dt.date.nunique() == 2
    newest = read(str(tmp_path)).iloc[-1]
    assert newest["latency_p50_ms"] == 7.0 and newest["weights"] == "random weights"
    assert newest["machine_description"] == '{"cpu": "one"}' and newest["code_version"] == "c0de"
    assert len(newest["commit"].removesuffix("-dirty")) == 40


def test_writers_do_not_wait_and_leave_whole_files(tmp_path: Path) -> None:
    manifests = [_manifest(_TONIGHT + timedelta(seconds=second)) for second in range(4)] * 4
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda manifest: append(str(tmp_path), _int4(7.0), manifest), manifests))
    assert len(read(str(tmp_path))) == 4
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    append(str(tmp_path), _int4(7.0), _manifest())
    (tmp_path / "copied-half.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"copied-half\.parquet is no readable Parquet file: remove it"):
        read(str(tmp_path))


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    file = Path(append(str(tmp_path), _int4(7.0), _manifest()))
    content = bytearray(file.read_bytes())
    content[-60:-20] = b"\xff" * 40
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"is no readable Parquet file: remove it"):
        read(str(tmp_path))


def test_the_history_outlives_the_artifacts(tmp_path: Path) -> None:
    file = append(history_directory(str(tmp_path)), _int4(7.0), _manifest())
    store = Store(tmp_path)
    assert store.collect_garbage().artifacts == 0 and store.verify() == {}
    assert Path(file).exists()


@pytest.mark.parametrize(
    ("p50s", "slow"),
    [
        pytest.param([7.0, 7.1, 6.9, 7.0, 7.2], False, id="as usual"),
        pytest.param([7.0, 7.1, 6.9, 7.0, 9.0], True, id="slower by a third"),
        pytest.param([7.0, 7.1, 6.9, 7.0, 5.0], False, id="faster"),
        pytest.param([7.0, 9.5, 6.0, 8.5, 9.0], False, id="a noisy machine"),
        pytest.param([7.0, 20.0, 7.0, 7.0, 9.0], True, id="one bad night hides nothing"),
        pytest.param([7.0, 7.0, 20.0], False, id="too few nights"),
        pytest.param([3.0] * 20 + [7.0] * 14 + [7.1], False, id="only recent nights count"),
    ],
)
def test_a_slowdown_is_flagged(tmp_path: Path, p50s: list[float], slow: bool) -> None:
    digest = _nights(tmp_path, p50s)
    latency, first_token = compare(read(str(tmp_path)), digest)
    assert latency.figure == "latency_p50_ms" and latency.now == p50s[-1]
    assert latency.slower == first_token.slower == slow
    rings = [
        line for line in series(read(str(tmp_path)), digest).axes[0].lines if line.get_fillstyle() == "full"
    ]
    assert slow == any(line.get_markerfacecolor() == "none" for line in rings)


def test_the_words_give_the_figures(tmp_path: Path) -> None:
    digest = _nights(tmp_path, [8.0, 8.0, 8.0, 10.0])
    latency, _ = compare(read(str(tmp_path)), digest)
    assert latency.sentence() == (
        "ONNX Runtime INT4: 10.0 ms per token, p50, usually 8.00 (median of 3 nights): +25%, allowed up to 8.80"
    )


def test_other_machines_and_the_same_day_do_not_count(tmp_path: Path) -> None:
    _nights(tmp_path, [1.0] * 5, cpu="another")
    digest = _nights(tmp_path, [1.0] * 5 + [7.0], step=timedelta(minutes=1))
    assert compare(read(str(tmp_path)), digest) == []
    png = to_png(series(read(str(tmp_path)), digest))
    assert png.startswith(b"\x89PNG") and len(png) < 100_000


@pytest.mark.parametrize("nights", [1, 2, 5, 30])
def test_any_number_of_nights_has_an_axis_of_days(tmp_path: Path, nights: int) -> None:
    digest = _nights(tmp_path, [7.0] * nights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of ticks that do not fit
        to_png(series(read(str(tmp_path)), digest))


def test_nights_without_a_figure_do_not_count(tmp_path: Path, measurements: list[Measurement]) -> None:
    for night in range(1, 14):
        absent = measurements[-1].model_copy(update={"engine": "ONNX Runtime INT4", "precision": "int4"})
        append(str(tmp_path), [absent], _manifest(_TONIGHT - timedelta(night)))
    for night in range(14, 20):
        append(str(tmp_path), _int4(10.0), _manifest(_TONIGHT - timedelta(night)))
    append(str(tmp_path), _int4(30.0), _manifest())
    frame = read(str(tmp_path))
    latency, _ = compare(frame, _manifest().digest)
    assert latency.slower and latency.nights == 6


def test_an_engine_that_was_not_measured_is_not_compared(
    tmp_path: Path, measurements: list[Measurement]
) -> None:
    for night in range(5):
        append(str(tmp_path), measurements[-1:], _manifest(_TONIGHT - timedelta(night)))
    assert compare(read(str(tmp_path)), _manifest().digest) == []
    assert series(read(str(tmp_path)), _manifest().digest) is None
