"""timm's names, recipes and weights files, without a connection."""

import argparse
import hashlib
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from skdeepfeat import (
    FeatureWarning,
    PretrainedCNNFeatures,
    WeightsError,
    list_backbones,
    list_layers,
)
from skdeepfeat._backbones import files, timm_records
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.weights import resolve_weights
from skdeepfeat._images.decoding import Pixels
from skdeepfeat._images.recipe import prepare

timm = pytest.importorskip("timm")
NAME, TAG = "timm/lcnet_050", "ra2_in1k"


def features(weights, backbone=NAME, **parameters):
    parameters = {"layer": "block2", "image_size": 32, "cache": None, **parameters}
    return PretrainedCNNFeatures(backbone, weights=weights, **parameters)


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return timm.create_model("lcnet_050").state_dict()


@pytest.fixture
def file(state, tmp_path):
    save_file(state, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


# Names --------------------------------------------------------------------------------


def test_all_pretrained_networks_of_timm_are_listed():
    names = list_backbones("timm/")
    known = {name.removeprefix("timm/") for name in names}
    if timm.__version__ == timm_records.table()["timm"]:
        assert set(timm.list_pretrained()) <= known
    assert not any(name.startswith("timm/") for name in list_backbones())
    assert "apache-2.0" in repr(list_backbones("timm/resnet18"))


def test_listing_imports_neither_torch_nor_timm():
    code = (
        "import sys, skdeepfeat as s\n"
        "assert len(s.list_backbones('timm/')) > 1800\n"
        "s.list_layers('timm/resnet18'), s.list_layers('timm/vit_tiny_patch16_224')\n"
        "s.PretrainedCNNFeatures('timm/resnet18').get_feature_names_out()\n"
        "try:\n"
        "    s.list_layers('timm/convnext_tinny')\n"
        "except ValueError as error:\n"
        "    assert 'timm/convnext_tiny' in str(error)\n"
        "assert not {'torch', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("timm/convnext_tinny", "timm/convnext_tiny"),
        ("timm/resnet18.a1_in1", "timm/resnet18.a1_in1k"),
        ("xception41", "timm/xception41"),
        ("TIMM/ResNet18", "timm/resnet18"),
        ("timm/timm/resnet18", "timm/resnet18"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_unknown_names_are_refused_with_the_closest_one(wrong, meant):
    with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
        list_layers(wrong)


@pytest.mark.parametrize(
    "wrong", ["timm", "timm/", "timm/zzzzzz", "zzzzzz", "z" * 5000]
)
def test_names_like_no_other_say_where_all_are_listed(wrong):
    with pytest.raises(ValueError, match="Unknown backbone") as error:
        list_layers(wrong)
    assert "list_backbones('timm/')" in str(error.value)
    assert "Did you mean" not in str(error.value)


def test_the_numbers_of_parameters_are_those_of_timm():
    names = [name for name in list_backbones("timm/") if "resnet10t" in name]
    names += ["timm/lcnet_050.ra2_in1k", "timm/vit_tiny_patch16_224.augreg_in21k"]
    for name in names:
        with torch.device("meta"):
            net = timm.create_model(name.removeprefix("timm/"))
        n_parameters = sum(p.numel() for p in net.parameters())
        assert timm_records.stated(name, "parameters") == n_parameters
    for name in list_backbones("timm/"):
        assert timm_records.stated(name, "parameters") > 1000


def test_an_architecture_means_its_default_version():
    for other in list_backbones("timm/")[:40]:  # more than are kept in memory
        resolve_backbone(NAME)
        resolve_backbone(other)
    assert resolve_backbone(NAME) is resolve_backbone(f"{NAME}.{TAG}")
    backbone = resolve_backbone("timm/convnext_tiny.in12k")
    classes = {a.alias: a.features for a in list_layers("timm/convnext_tiny.in12k")}
    assert backbone.weights[0].name == "in12k" and classes["logits"] == 11821
    with pytest.raises(ValueError, match="Published versions: 'ra2_in1k', 'default'"):
        features("a1_in1k").fit([np.zeros((8, 8, 3), np.uint8)])


def test_the_version_of_a_name_is_looked_up_once(monkeypatch):
    names = []
    look_up = timm_records.find_version
    monkeypatch.setattr(
        timm_records, "find_version", lambda name: names.append(name) or look_up(name)
    )
    timm_records._backbone_of_version.cache_clear()
    assert resolve_backbone(NAME).name == f"{NAME}.{TAG}" and len(names) == 1


def test_a_tag_may_also_be_named_as_weights():
    backbone = resolve_backbone("timm/resnet18")
    names = [version.name for version in backbone.weights]
    assert names[0] == "a1_in1k" and "tv_in1k" in names
    found = resolve_weights(backbone, "tv_in1k", 0)
    own = resolve_weights(resolve_backbone("timm/resnet18.tv_in1k"), "default", 0)
    assert found.input == own.input and found.key() == own.key()
    other_classes = resolve_backbone("timm/convnext_tiny.in12k").weights
    assert {version.name for version in other_classes} == {"in12k"}


def test_networks_that_the_table_lacks_are_looked_up_in_timm(monkeypatch):
    known = timm_records.versions()
    rest = {name: v for name, v in known.items() if "resnet10t" not in name}
    monkeypatch.setattr(timm_records, "versions", lambda: rest)
    monkeypatch.setattr(timm_records, "_is_current", lambda: False)
    timm_records._backbone_of_version.cache_clear()
    found = resolve_backbone("timm/resnet10t.c3_in1k")
    assert found.input == known["resnet10t"].input and found.layers is None
    assert timm_records.find_version("resnet10t.nothing") is None
    timm_records._backbone_of_version.cache_clear()


def test_inputs_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match=r"takes images of 768 × 1024 pixels"):
        list_layers("timm/vit_base_patch16_sapiens2")


# Recipes ------------------------------------------------------------------------------


def recipes():
    """One version of each mode, fraction and filter."""
    found = {}
    for name, version in timm_records.versions().items():
        if version.size[0] == version.size[1] <= 384:
            found.setdefault((*version.recipe[:3], version.size[0] % 7), name)
    chosen = sorted(found.items(), key=lambda item: (item[0][1], str(item[0])))
    return [name for (_, mode, *_), name in chosen if mode != "center"] + [
        name for (_, mode, *_), name in chosen if mode == "center"
    ][::4]


@pytest.mark.parametrize("name", recipes())
def test_pixels_are_those_of_timm(name):
    from timm.data import create_transform, resolve_data_config

    configuration = timm.get_pretrained_cfg(name).to_dict()
    transform = create_transform(**resolve_data_config(configuration))
    spec = resolve_backbone(f"timm/{name}").input
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    for size in [(301, 200), (150, 407), (spec.image_size,) * 2]:
        image = coarse.resize(size, Image.Resampling.BICUBIC)
        pixels = prepare(Pixels(image, True), spec).astype(np.float32) / 255
        found = (pixels - np.float32(spec.mean)) / np.float32(spec.std)
        expected = transform(image).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_another_input_size_keeps_the_fraction_and_rounds_down():
    spec = resolve_backbone("timm/resnet18").input
    assert spec.crop_pct == 0.95
    assert spec.scaled(528).resize == math.floor(528 / 0.95)


def test_floats_have_the_same_margins():
    spec = resolve_backbone("timm/vit_base_patch16_siglip_224").input
    border = next(
        v.input for v in timm_records.versions().values() if v.recipe[1] == "border"
    )
    coarse = np.random.default_rng(0).integers(50, 200, (4, 4, 3), dtype=np.uint8)
    values = np.asarray(Image.fromarray(coarse).resize((40, 90)))
    for recipe in (spec, border):
        eight_bit = prepare(Pixels(Image.fromarray(values), True), recipe)
        floats = prepare(Pixels(values.astype(np.float32) / 255, True), recipe)
        np.testing.assert_allclose(floats, eight_bit, atol=2)


# Weights ------------------------------------------------------------------------------


def test_files_of_trainings_are_read(state, file, photos, tmp_path):
    expected = features(file).fit_transform(photos)
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
    contents = {
        "plain": state,
        "wrapped": wrapped,
        "state_dict": {"state_dict": wrapped, "epoch": 3},
        "model": {"model": state, "optimizer": {"state": {}}},
        "ema": {"state_dict": other, "state_dict_ema": state},
        "model_ema": {"model": other, "model_ema": state},
        "arguments": {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
    }
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pth")
        found = features(tmp_path / f"{name}.pth").fit_transform(photos)
        np.testing.assert_array_equal(found, expected, name)


def test_a_file_with_other_classes_serves_features(state, photos, tmp_path, file):
    expected = features(file).fit_transform(photos)
    without = timm.create_model("lcnet_050", num_classes=0).state_dict()
    without = {name: state[name] for name in without}
    other = without | {
        "classifier.weight": torch.ones(5, 1280),
        "classifier.bias": torch.ones(5),
    }
    for content in (without, other):
        save_file(content, tmp_path / "other.safetensors")
        est = features(tmp_path / "other.safetensors")
        np.testing.assert_array_equal(est.fit_transform(photos), expected)
        with pytest.raises(WeightsError, match="no classes that fit"):
            est.set_params(layer="logits").fit_transform(photos)


def test_wrong_files_are_refused(state, file, photos, tmp_path):
    save_file(timm.create_model("lcnet_035").state_dict(), tmp_path / "a.safetensors")
    one_channel = timm.create_model("lcnet_050", in_chans=1).state_dict()
    save_file(one_channel, tmp_path / "b.safetensors")
    for name, words in [("a", "with other shapes"), ("b", r"conv_stem.weight: file")]:
        with pytest.raises(WeightsError, match=words):
            features(tmp_path / f"{name}.safetensors").fit_transform(photos)
    less = {name: v for name, v in state.items() if name != "blocks.1.0.bn2.weight"}
    save_file(less, tmp_path / "less.safetensors")
    with pytest.raises(WeightsError, match=r"missing from the file .blocks.1.0.bn2"):
        features(tmp_path / "less.safetensors").fit_transform(photos)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsError, match="damaged, truncated"):
        features(cut).fit_transform(photos)


def test_weights_for_another_input_size_are_converted_as_timm_does(tmp_path, photos):
    torch.manual_seed(0)
    small = timm.create_model("vit_tiny_patch16_224", img_size=64)
    large = timm.create_model("vit_tiny_patch16_224", img_size=96).state_dict()
    save_file(large, tmp_path / "large.safetensors")
    est = features(
        tmp_path / "large.safetensors",
        "timm/vit_tiny_patch16_224",
        image_size=64,
        layer="block1",
    )
    from timm.models.vision_transformer import checkpoint_filter_fn

    small.load_state_dict(checkpoint_filter_fn(dict(large), small))
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    rows = est.fit_transform(photos[:2])
    est.set_params(weights=tmp_path / "small.safetensors")
    np.testing.assert_array_equal(est.fit_transform(photos[:2]), rows)
    assert not np.isnan(rows).any()


def test_seeded_weights_depend_on_the_seed_alone(photos):
    rows = [
        features(None, random_state=seed).fit_transform(photos) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


# The hub ------------------------------------------------------------------------------


def published(path, monkeypatch):
    """Let the hub have this file, named by its checksum as in the hub's cache."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []
    blob = path.parent / hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(blob)
    path.symlink_to(blob)

    def download(repo_id, filename, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        asked.append((repo_id, filename))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked, blob


def test_published_weights_come_from_the_hub(file, photos, monkeypatch):
    expected = features(file).fit_transform(photos)
    asked, blob = published(file, monkeypatch)
    np.testing.assert_array_equal(features("default").fit_transform(photos), expected)
    assert asked == [("timm/lcnet_050.ra2_in1k", "model.safetensors")]
    np.testing.assert_array_equal(features(file).fit_transform(photos), expected)
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    from skdeepfeat import clear_caches

    clear_caches()
    with pytest.raises(WeightsError, match="not the one of the hub"):
        features("default").fit_transform(photos)


def test_only_an_absent_file_is_replaced_by_a_pickled_one(file, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError

    asked, _ = published(file, monkeypatch)
    found = huggingface_hub.hf_hub_download

    def download(repo_id, filename, **options):
        if filename.endswith(".safetensors") and not options:
            raise EntryNotFoundError("no such file")
        return found(repo_id, filename, **options)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert files.from_hub(resolve_backbone(NAME).weights[0]) == file
    assert asked == [("timm/lcnet_050.ra2_in1k", "pytorch_model.bin")]


def test_without_a_connection_the_file_to_copy_is_named(photos, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def offline(*_, **__):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(
        WeightsError, match=r"copy 'model.safetensors' from .*lcnet_050"
    ):
        features("default").fit_transform(photos)


def test_a_licence_that_forbids_commercial_use_is_said_once(file, monkeypatch):
    published(file, monkeypatch)
    name = next(
        name
        for name, version in timm_records.versions().items()
        if version.licence == "cc-by-nc-4.0" and "." in name
    )
    weights = resolve_backbone(f"timm/{name}").weights[0]
    assert weights.licence in repr(list_backbones(f"timm/{name}"))
    with pytest.warns(FeatureWarning, match="does not allow commercial use") as seen:
        files.read_published(weights)
        files.read_published(weights)
    assert len(seen) == 1


# Folders ------------------------------------------------------------------------------


def test_a_folder_that_timm_has_saved_is_a_backbone(tmp_path, photos):
    from timm.models import save_for_hf

    torch.manual_seed(0)
    net = timm.create_model("lcnet_050", num_classes=7)
    save_for_hf(net, tmp_path / "flowers", model_config={})
    path = str(tmp_path / "flowers")
    layers = {layer.alias: layer.features for layer in list_layers(path)}
    assert layers["logits"] == 7
    save_file(net.state_dict(), tmp_path / "same.safetensors")
    rows = features("default", path).fit_transform(photos)
    expected = features(tmp_path / "same.safetensors").fit_transform(photos)
    np.testing.assert_array_equal(rows, expected)
    changed = timm.create_model("lcnet_050", num_classes=7)
    save_file(changed.state_dict(), tmp_path / "flowers" / "model.safetensors")
    other = features("default", path, cache="memory").fit_transform(photos)
    assert not np.array_equal(other, rows)


SAVED = {"architecture": "lcnet_050", "num_classes": 7}
WRONG = {  # content of a configuration → words of the sentence about it
    "{": "is not JSON",
    "\xff": "is not JSON",
    "null": "names no 'architecture'",
    "[]": "names no 'architecture'",
    '{"model_type": "bert"}': "names no 'architecture'",
    '{"architecture": ["a"]}': r"architecture=\['a'\] instead of a name",
    '{"architecture": "resnet018"}': "timm does not have. Did you mean 'resnet18'",
    json.dumps({**SAVED, "num_classes": "7"}): "num_classes='7' instead of a number",
    json.dumps({**SAVED, "num_classes": True}): "num_classes=True instead of a number",
    json.dumps({**SAVED, "pretrained_cfg": []}): "instead of settings by name",
    **{
        json.dumps({**SAVED, "pretrained_cfg": {name: value}}): f"has {name}="
        for name, value in [
            ("input_size", [1, 96, 96]),
            ("input_size", 96),
            ("input_size", [3, 0.5, 96]),
            ("mean", 0.5),
            ("mean", [0.5, "a", 0.5]),
            ("mean", [0.5, True, 0.5]),
            ("std", [0.5, 0.0, 0.5]),
            ("crop_pct", 0),
            ("crop_pct", math.nan),
            ("crop_pct", True),
            ("crop_mode", "middle"),
            ("interpolation", ["bicubic"]),
            ("license", {"name": "mit"}),
        ]
    },
}


@pytest.mark.parametrize("content", WRONG)
def test_a_folder_of_something_else_is_refused(content, state, tmp_path):
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(ValueError, match=WRONG[content]) as error:
        list_layers(str(tmp_path))
    assert str(tmp_path) in str(error.value)


def test_settings_of_a_folder_may_be_absent_or_null(tmp_path):
    save_file(
        timm.create_model("lcnet_050").state_dict(), tmp_path / "model.safetensors"
    )
    empty = dict.fromkeys(["mean", "crop_pct", "classifier", "license"])
    for settings in ({}, {"pretrained_cfg": None}, {"pretrained_cfg": empty}):
        about = {"architecture": "lcnet_050", **settings}
        (tmp_path / "config.json").write_text(json.dumps(about))
        found = resolve_backbone(str(tmp_path)).input
        assert (found.image_size, found.resize) == (224, 256)


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SAVED))
    with pytest.raises(WeightsError, match="contains no weights"):
        list_layers(str(tmp_path))
