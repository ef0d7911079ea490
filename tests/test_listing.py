"""Tables: lists that print as aligned text and as escaped HTML."""

import copy
import pickle
import xml.etree.ElementTree as ElementTree

import pytest

from skdeepfeat import (
    FeatureStore,
    PretrainedCNNFeatures,
    list_backbones,
    list_layers,
    load_textures,
)
from skdeepfeat._listing import Field, Listing, as_text, facts_as_html

NETWORKS = {"small": (700_000, "BSD"), "large": (25_600_000, None)}
COLUMNS = [
    Field("name", str),
    Field("parameters", lambda name: NETWORKS[name][0], ","),
    Field("licence", lambda name: NETWORKS[name][1]),
]


@pytest.fixture
def table():
    return Listing(NETWORKS, COLUMNS)


def cells_of(html):
    """The texts of an HTML table, row by row; a parse error fails the test."""
    root = ElementTree.fromstring(html)
    return [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]


def test_numbers_are_right_aligned(table):
    assert repr(table).splitlines() == [
        "name   parameters  licence",
        "small     700,000  BSD",
        "large  25,600,000",
    ]
    assert str(table) == repr(table)


def test_an_empty_table_prints_its_titles():
    assert repr(Listing([], COLUMNS)) == "name  parameters  licence"


def test_is_a_list_of_its_items(table):
    assert table == ["small", "large"]
    assert ["small", "large"] == table
    assert table != ["small"]
    assert sorted(table) == ["large", "small"]
    assert "large" in table and table.index("large") == 1
    assert table[0] == "small" and table[-1] == "large"


def test_slices_print_as_listing(table):
    assert table[:1] == ["small"]
    assert repr(table[:1]).splitlines()[1] == "small     700,000  BSD"
    assert table[::-1] == ["large", "small"]
    assert "large" in table[::-1]._repr_html_()


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, list])
def test_copies_are_plain_lists(table, again):
    assert type(again(table)) is list
    assert again(table) == table


def test_pickles_are_plain_lists_without_the_columns(table):
    found = pickle.loads(pickle.dumps(table))
    assert type(found) is list
    assert found == ["small", "large"]


def test_html_has_the_cells_of_the_text(table):
    assert cells_of(table._repr_html_()) == [
        ["name", "parameters", "licence"],
        ["small", "700,000", "BSD"],
        ["large", "25,600,000", ""],
    ]


def test_html_escapes_titles_and_cells():
    name = "<script>alert('x')</script>&"
    table = Listing([name], [Field("a < b", str)])
    assert "<script>" not in table._repr_html_()
    assert cells_of(table._repr_html_()) == [["a < b"], [name]]


def test_percentages_and_missing_numbers():
    shares = [Field("layer", str), Field("share", {"a": 0.5}.get, ".1%")]
    assert repr(Listing("ab", shares)).splitlines() == [
        "layer  share",
        "a      50.0%",
        "b",
    ]


def test_columns_of_text_are_left_aligned():
    assert as_text(["x"], []) == "x"
    table = Listing(["longer", "s"], [Field("t", str), Field("u", str)])
    assert repr(table).splitlines()[2] == "s       s"


def test_facts_show_numbers_with_separators_and_nested_facts_below_their_name():
    facts = {"rows": 12_345, "path": "a<b", "layers": {"mini block1 avg": 7}}
    html = facts_as_html("FeatureStore('f.store')", facts)
    assert cells_of(html) == [
        ["rows", "12,345"],
        ["path", "a<b"],
        ["layers", ""],
        ["mini block1 avg", "7"],
    ]
    assert "<caption>FeatureStore(&#x27;f.store&#x27;)</caption>" in html


# What the package shows as tables ---------------------------------------------------


def shown_rows(listing):
    """{first cell: line} of what a listing prints."""
    return {line.split()[0]: line for line in repr(listing).splitlines()}


def test_list_layers_is_a_list_of_records_that_prints_their_fields():
    layers = list_layers("resnet50")
    assert isinstance(layers, list) and layers[1].alias == "block1"
    rows = shown_rows(layers)
    assert list(rows) == ["layer", *(layer.alias for layer in layers)]
    assert rows["penultimate"].split()[1:] == ["flatten", "2048", "2,048", "99.95%"]


@pytest.mark.parametrize("prefix", [None, 5, ["resnet"]])
def test_a_prefix_is_a_string(prefix):
    with pytest.raises(ValueError, match="'prefix' parameter of list_backbones must"):
        list_backbones(prefix)


def test_list_backbones_is_a_list_of_names_that_prints_their_parameters():
    names = list_backbones()
    assert names == sorted(names)
    assert shown_rows(names)["resnet50"].split() == ["resnet50", "25,557,032", "224"]


def test_parameters_and_licences_are_those_that_torchvision_states():
    from torchvision import models

    rows = shown_rows(list_backbones())
    for name in models.list_models(module=models):
        meta = models.get_model_weights(name).DEFAULT.meta
        assert f"{meta['num_params']:,}" in rows[name].split()
        assert rows[name].endswith(meta.get("license", ""))


def test_a_store_shows_its_info_in_a_notebook():
    store = FeatureStore(name="shown")
    store.clear()
    features = PretrainedCNNFeatures(cache=store, prefetch_layers=[])
    features.transform(load_textures().data[:3])
    rows = cells_of(store._repr_html_())
    assert ["misses", "3"] in rows
    assert rows[-1][0].startswith("mini") and rows[-1][1] == "3"
