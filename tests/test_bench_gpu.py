"""The parts of the GPU benchmark that need no GPU."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("bench_gpu")


def test_the_rate_is_the_median_after_a_first_pass(bench):
    times = iter([0, 100, 100, 101, 101, 103, 103, 113])  # 100 s, then 1, 2 and 10 s
    calls = []
    rate = bench.items_per_second(
        lambda: calls.append("run"),
        n_items=8,
        passes=3,
        wait=lambda: calls.append("wait"),
        clock=lambda: next(times),
    )
    assert rate == 8 / 2
    assert calls == ["run", "wait"] * 4


def test_a_table_is_printed_row_by_row(bench):
    made = []

    def rows():
        for rate in (1234.5, 0.98765):
            made.append(rate)
            yield ["mini", rate, None]

    lines = bench.markdown_rows(["network", "images/s", "MiB"], rows())
    head = ["| network | images/s | MiB |", "| --- | --- | --- |"]
    assert [next(lines), next(lines)] == head and not made
    assert next(lines) == "| mini | 1,234 | – |" and made == [1234.5]
    assert list(lines) == ["| mini | 0.988 | – |"]


def test_the_ratio_is_that_of_the_best_of_each(bench):
    cells = bench.speed_cells([(100, 7), (200, 9)], [(300, 5), (250, 6)])
    assert cells == [100, 200, 300, 250, 1.5, 9, 6]


def test_switches_of_torch_are_put_back(bench):
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    with pytest.raises(KeyError), bench.rounding("float32"):
        assert not any(place.allow_tf32 for place in places)
        with bench.rounding("tf32"):
            assert all(place.allow_tf32 for place in places)
        raise KeyError
    assert [place.allow_tf32 for place in places] == before


def test_without_a_gpu_it_says_so(bench, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) is None  # exit status 0
    assert capsys.readouterr().out.startswith("Nothing is measured: torch sees no CUDA")


@pytest.mark.slow
def test_it_runs_on_a_cpu():
    options = ["--device", "cpu", "--small", "--images", "16"]
    options += ["--networks", "mini", "--precisions", "float32"]
    command = [sys.executable, str(FOLDER / "bench_gpu.py"), *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.count("\n### ") == 3
    assert done.stdout.count("| mini | ") == 2 + 1 + 2
