"""The files around the package agree with each other, and .ci/run reports failures."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

import skdeepfeat

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
RUN = ROOT / ".ci" / "run"


CORE = PROJECT["dependencies"]
MOST = ("cluster", "openvino", "plot", "remote", "tiff", "timm", "test-lowest")


def lower_bounds(lines, extras):
    """{name: lowest version} of what lines of dependencies and extras name."""
    wanted = [*lines, *(line for name in extras for line in EXTRAS[name])]
    others = (line for line in wanted if not line.startswith("skdeepfeat["))
    return dict(re.split(">=|==", re.sub(r"\[.*\]", "", line)) for line in others)


LOWEST = lower_bounds(CORE, MOST)
LOWEST_EXTRAS = lower_bounds([], ("onnx", "text"))
ABOVE = {name: LOWEST_EXTRAS[name] for name in LOWEST_EXTRAS.keys() - LOWEST.keys()}


@pytest.mark.parametrize(
    ("file", "bounds"), [("lowest.txt", LOWEST), ("lowest_extras.txt", ABOVE)]
)
def test_the_lowest_versions_tested_are_the_lower_bounds(file, bounds):
    lines_of_file = (ROOT / ".ci" / file).read_text().splitlines()
    pinned = dict(line.split("==") for line in lines_of_file if line[0] != "#")
    assert sorted(pinned) == sorted(bounds)
    for name, version in pinned.items():
        assert re.fullmatch(rf"{re.escape(bounds[name])}(\.0)*", version), name


def test_the_changelog_begins_with_the_version():
    """That of a development version is called "Unreleased"."""
    text = (ROOT / "docs" / "changelog.md").read_text()
    heading = re.search(r"^## (\S+)", text, re.MULTILINE).group(1)
    version = skdeepfeat.__version__
    assert heading == ("Unreleased" if ".dev" in version else version)


def test_the_version_is_defined_in_one_place():
    files = ["pyproject.toml", "CITATION.cff", "docs/conf.py"]
    release = skdeepfeat.__version__.split(".dev")[0]
    assert not [f for f in files if f'"{release}' in (ROOT / f).read_text()]
    assert "version" in PROJECT["dynamic"]


def test_the_marker_of_a_typed_package_ships():
    assert resources.files("skdeepfeat").joinpath("py.typed").is_file()


def test_links_of_the_project_lead_to_its_pages():
    assert set(PROJECT["urls"]) == {"Documentation", "Source", "Issues", "Changelog"}
    page = Path(PROJECT["urls"]["Changelog"]).stem
    assert (ROOT / "docs" / f"{page}.md").is_file()


def gates_of(text):
    """Names after ".ci/run", in a matrix of gates, or the default ones of .ci/run."""
    before, names = r"(?:\.ci/run|gates:|set --)", r"((?:[ ,\[]+[a-z_]+)+)\]?$"
    lists = re.findall(before + names, text, re.M)
    return [name for some in lists for name in re.findall("[a-z_]+", some)]


@pytest.mark.parametrize("file", [".ci/run", ".github/workflows/tests.yml"])
def test_gates_exist(file):
    gates = gates_of((ROOT / file).read_text())
    functions = re.findall(r"^(\w+)\(\) \{", RUN.read_text(), re.MULTILINE)
    assert len(gates) >= 6 and set(gates) <= set(functions)


@pytest.fixture
def run_gates(tmp_path):
    """Run .ci/run in a folder where `ruff` and `mypy` end with the given codes."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(RUN, tmp_path / ".ci" / "run")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)

    def run(*gates, **codes):
        for tool, code in codes.items():
            program = tmp_path / ".venv" / "bin" / tool
            program.write_text(f"#!/bin/sh\nexit {code}\n")
            program.chmod(0o755)
        command = [str(tmp_path / ".ci" / "run"), *gates]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ)

    return run


def test_a_gate_that_fails_stops_no_other_and_fails_the_run(run_gates):
    done = run_gates("lint", "types", ruff=1, mypy=0)
    assert done.returncode == 1
    assert re.search(r"^lint: FAILED in \d+ s\ntypes: passed in \d+ s$", *report(done))


def test_gates_that_pass_pass_the_run(run_gates):
    done = run_gates("lint", "types", ruff=0, mypy=0)
    assert done.returncode == 0
    assert re.search(r"^lint: passed in \d+ s\ntypes: passed in \d+ s$", *report(done))


def test_an_unknown_gate_fails_the_run(run_gates):
    assert run_gates("lints").returncode == 1


def report(done):
    return done.stdout, re.MULTILINE


SCRIPTS = [*(ROOT / "tools").glob("*.py"), *(ROOT / "tests/benchmarks").glob("*.py")]

# Asks every script that can be started here for its help.
ASK = """
import contextlib, io, runpy, sys, warnings
warnings.simplefilter("ignore")
for path in sys.argv[1:]:
    sys.argv, out = [path, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            runpy.run_path(path, run_name="__main__")
    except ModuleNotFoundError:  # of a package that is optional
        continue
    except SystemExit as end:
        assert not end.code, path
    assert out.getvalue().startswith("usage: "), path
"""


@pytest.mark.slow
def test_every_script_has_a_help_and_does_nothing_else_then(tmp_path):
    command = [sys.executable, "-c", ASK, *map(str, sorted(SCRIPTS))]
    (folder := tmp_path / "here").mkdir()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.listdir(folder) == []
