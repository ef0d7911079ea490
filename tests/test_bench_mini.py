"""The parts of the benchmark of "mini" that need no data."""

import importlib
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "benchmarks"
OTHER_VERSION = """
class PretrainedCNNFeatures:
    def __init__(self, **parameters):
        assert parameters.pop("image_size") == 7
    def transform(self, X):
        return X
"""


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("bench_mini")


@pytest.fixture
def measured(bench, monkeypatch):
    """Names of the networks in the order of their turns, with made-up figures."""
    names = []

    def measured(part, data, network):
        names.append(network.name)
        return {"torch": {"images/s": float(len(names))}}

    monkeypatch.setattr(bench, "measured", measured)
    return names


def test_another_version_is_measured_in_a_process_of_its_own(bench, tmp_path):
    (tmp_path / "skdeepfeat").mkdir()
    (tmp_path / "skdeepfeat" / "__init__.py").write_text(OTHER_VERSION)
    other = bench.Network("other", {"image_size": 7}, bench.checkout(tmp_path))
    figures = bench.measured("speed", "no data", other)
    assert figures["torch"]["images/s"] > 10_000  # it computes nothing


def test_a_folder_without_the_package_is_refused(bench, tmp_path, capsys):
    with pytest.raises(SystemExit):
        bench.main(["data", "--beside", str(tmp_path)])
    assert "has no folder 'skdeepfeat'" in capsys.readouterr().err


def test_networks_take_turns_and_their_medians_are_printed(
    bench, measured, monkeypatch, capsys
):
    names = {"a": "", "b": "no_such_weights", "c": ""}
    networks = [bench.Network(name, {}, needs=needs) for name, needs in names.items()]
    part = bench.Part("Speed", None, lambda data, other: networks, turns=3)
    monkeypatch.setitem(bench.PARTS, "speed", part)
    bench.report("speed", "data", "")
    assert measured == ["a", "c"] * 3
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    rows = [["images/s"], ["a", "torch", "3.000"], ["c", "torch", "4.000"]]
    assert printed[2:5] == rows
    assert " ".join(printed[5]) == "b: left out, no_such_weights is missing"


def test_the_time_is_the_median_after_a_first_call(bench):
    now = iter([0, 0, 1, 1, 1, 3, 3, 3, 13, 13])  # 1, 2 and 10 s
    calls = []
    median = bench.seconds(lambda: calls.append(1), 10, clock=lambda: next(now))
    assert median == 2
    assert len(calls) == 4


def test_the_other_mini_takes_part_if_there_is_one(bench):
    names = [one.name for one in bench.minis("")]
    assert names == ["mini", "mini at 128", "mini at 224"]
    assert bench.minis("/somewhere")[-1].checkout == "/somewhere"


def test_half_of_the_photos_of_each_face_are_learned(bench, shared_data):
    _, person, [(learned, tested)] = bench.faces(shared_data)
    for rows in (learned, tested):
        assert np.bincount(person[rows]).tolist() == [5] * 40
    assert not set(learned) & set(tested)
