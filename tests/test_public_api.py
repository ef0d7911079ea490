"""The public API is sorted, documented, and named after the package."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import skdeepfeat

ROOT = Path(__file__).parents[1]
CLASSES = [thing for thing in vars(skdeepfeat).values() if isinstance(thing, type)]
GENERATED = re.compile("set_.*_request")  # by scikit-learn
# Methods that other classes of the package call, and users do not need.
BETWEEN_CLASSES = {
    "FeatureStore.open",
    "FineTunedClassifier.count_blocks",
    "FineTunedClassifier.divide",
    "FineTunedClassifier.to_backbone",
    "ImageError.at",
    "PretrainedCNNFeatures.score_layers",
    "PretrainedTextFeatures.score_layers",
    "TextError.at",
    "WeightsError.missing",
    "WeightsError.retired",
}
# Methods that are used as those of any other classifier or store.
WITHOUT_EXAMPLE = {
    "FeatureStore.clear",
    "FineTunedClassifier.decision_function",
    "FineTunedClassifier.partial_fit",
}


def public_functions():
    """{"name" or "Class.name": function} of all functions and methods."""
    found = {
        name: thing
        for name in skdeepfeat.__all__
        if inspect.isfunction(thing := getattr(skdeepfeat, name))
    }
    for cls in CLASSES:
        for name in dir(cls):
            method = getattr(cls, name)
            is_public = not name.startswith("_") and not GENERATED.fullmatch(name)
            is_ours = str(getattr(method, "__module__", "")).startswith("skdeepfeat")
            if is_public and is_ours and inspect.isroutine(method):
                found[f"{cls.__name__}.{name}"] = method
    return {name: thing for name, thing in found.items() if name not in BETWEEN_CLASSES}


FUNCTIONS = public_functions()
CALLABLES = FUNCTIONS | {
    cls.__name__: cls for cls in CLASSES if not issubclass(cls, Exception)
}


@pytest.fixture(scope="module")
def examples():
    """The code that test_docs.py runs: docstrings, pages and the gallery."""
    public = [getattr(skdeepfeat, name) for name in skdeepfeat.__all__]
    docs = [inspect.getdoc(thing) or "" for thing in [*public, *FUNCTIONS.values()]]
    lines = [
        line for doc in docs for line in re.findall(r"^(?:>>>|\.\.\.) (.*)", doc, re.M)
    ]
    pages = [page.read_text("utf-8") for page in (ROOT / "docs").rglob("*.md")]
    blocks = [
        b for page in pages for b in re.findall(r"```python\n(.*?)```", page, re.S)
    ]
    gallery = [p.read_text("utf-8") for p in (ROOT / "examples").glob("plot_*.py")]
    return "\n".join([*lines, *blocks, *gallery])


def test_all_is_sorted_and_complete():
    assert skdeepfeat.__all__ == sorted(skdeepfeat.__all__)
    public = {name for name in vars(skdeepfeat) if not name.startswith("_")}
    assert public == set(skdeepfeat.__all__)


@pytest.mark.parametrize("name", skdeepfeat.__all__)
def test_public_names_are_documented_and_named_after_the_package(name):
    thing = getattr(skdeepfeat, name)
    assert thing.__module__ == "skdeepfeat"
    doc = inspect.getdoc(thing)
    assert doc and doc[0].isupper() and doc.splitlines()[0].endswith(".")
    is_problem = isinstance(thing, type) and issubclass(thing, Exception)
    takes_nothing = not is_problem and not inspect.signature(thing).parameters
    if not is_problem and not takes_nothing:
        assert "Parameters\n----------" in doc
    if not is_problem:
        assert "Examples\n--------" in doc


@pytest.mark.parametrize("name", CALLABLES)
def test_documented_defaults_are_those_of_the_signature(name):
    doc = inspect.getdoc(CALLABLES[name])
    lines = re.findall(r"^([\w, ]+) : .*?\bdefault=(.*)$", doc, re.MULTILINE)
    documented = {
        name: ast.literal_eval(default)
        for names, default in lines
        for name in names.split(", ")
    }
    parameters = inspect.signature(CALLABLES[name]).parameters.values()
    assert documented == {p.name: p.default for p in parameters if p.default != p.empty}


def test_the_page_of_errors_lists_every_public_one():
    page = (ROOT / "docs" / "guide" / "errors.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    public = [cls.__name__ for cls in CLASSES if issubclass(cls, Exception)]
    assert sorted(listed) == sorted(public)


def test_the_api_page_lists_every_public_name_once():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^   (\w+)$", page, re.MULTILINE)
    assert sorted(listed) == skdeepfeat.__all__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_are_documented_with_all_parameters(name):
    function = FUNCTIONS[name]
    doc = inspect.getdoc(function)
    assert doc and doc[0].isupper() and doc.splitlines()[0].endswith(".")
    lines = re.findall(r"^(?:([\w, ]+) : .*|\*\*(\w+))$", doc, re.MULTILINE)
    documented = {name for line in lines for name in re.findall(r"\w+", " ".join(line))}
    assert set(inspect.signature(function).parameters) - {"self"} <= documented


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - WITHOUT_EXAMPLE))
def test_public_functions_have_an_example_that_runs(name, examples):
    assert re.search(rf"\b{name.split('.')[-1]}\(", examples)
