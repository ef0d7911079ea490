"""The public face: sorted, documented, and named after the package."""

import inspect

import pytest

import skdeepfeat


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


def test_every_parameter_is_documented_with_its_default():
    cls = skdeepfeat.PretrainedCNNFeatures
    doc = inspect.getdoc(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        line = next(line for line in doc.splitlines() if line.startswith(f"{name} : "))
        start = doc.index(line)
        default = repr(parameter.default).replace("'", '"')
        assert f"default={default}" in doc[start : start + 200], name
