"""The code in the documentation runs: docstrings, README, guides, examples."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skdeepfeat

ROOT = Path(__file__).parents[1]
WALK = pkgutil.walk_packages(skdeepfeat.__path__, "skdeepfeat.")
MODULES = ["skdeepfeat", *sorted(module.name for module in WALK)]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").glob("plot_*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_docstrings(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page, tmp_path, monkeypatch):
    """The Python blocks of a page run one after the other in one namespace.

    What they print is what the comment behind says, if that is a number or a shape.
    """
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    _make_photos(tmp_path / "photos")
    printed = {}

    def keep(*values, **options):
        line = sys._getframe(1).f_lineno
        printed[line] = " ".join(map(str, values))

    namespace = {"__name__": "__main__", "print": keep}
    for block in blocks:
        printed.clear()
        exec(compile(block, page.name, "exec"), namespace)
        for number, line in enumerate(block.splitlines(), start=1):
            if stated := PRINTED.search(line):
                expected = eval(stated[1].replace("number of photos", "20"))
                assert printed[number].startswith(str(expected)), line


# A number or a shape behind a call of print.
PRINTED = re.compile(r"print\(.*\)  # (\(.*\)|\d+)")


def _make_photos(root):
    """A folder of two classes, as the pages assume."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for low, name in [(0, "ants"), (120, "bees")]:
        (root / name).mkdir(parents=True)
        for i in range(10):
            pixels = rng.integers(low, low + 130, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.jpg")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples(example, tmp_path):
    """Examples run at a reduced size, in a folder of their own, without a screen."""
    environment = os.environ | {"MPLBACKEND": "agg", "SKDEEPFEAT_EXAMPLE_SIZE": "60"}
    subprocess.run(
        [sys.executable, str(example)], cwd=tmp_path, env=environment, check=True
    )
    assert list(tmp_path.glob("*.png")), "an example saves its figure"


def test_the_readme_states_the_number_of_checks():
    from test_estimators import EXTRA_CHECKS, NUMBER_OF_CHECKS

    text = " ".join((ROOT / "README.md").read_text().split())
    transformer, classifier = NUMBER_OF_CHECKS.values()
    assert f"runs {transformer} of scikit-learn's common checks" in text
    assert f"the classifier {classifier}." in text
    assert f"{len(EXTRA_CHECKS)} more" in text


def test_ci_runs_the_readmes_test_command():
    readme = (ROOT / "README.md").read_text()
    command = re.search(r"pip install .*python -m pytest.*", readme).group(0)
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert command in [line.strip() for line in lines]
