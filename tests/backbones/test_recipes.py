"""The preprocessing of weights files of timm's networks, by what identifies them."""

import hashlib
import json
import warnings
from dataclasses import replace

import pytest

from skdeepfeat import PretrainedCNNFeatures, RecipeWarning
from skdeepfeat._backbones import recipes, timm_records
from skdeepfeat._backbones.registry import resolve_backbone
from skdeepfeat._backbones.text_registry import resolve_text_backbone as resolve_text
from skdeepfeat._backbones.weights import resolve_source, resolve_weights

# An architecture whose versions have images of 224 and 160 pixels, and their fractions.
NAME, LARGE, SMALL = "timm/resnet18", 224, 160
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def file(tmp_path):
    """A function that writes a file under a path, and returns the whole path."""

    def write(*parts, content=b"x"):
        path = tmp_path.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


def recipe(name, weights):
    """The preprocessing, without any warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return resolve_source(name, weights, 0, None).input


def of_version(tag, architecture=NAME):
    return resolve_backbone(f"{architecture}.{tag}").input


@pytest.mark.parametrize(
    "parts",
    [
        ("models--timm--resnet18.a3_in1k", "snapshots", COMMIT, "model.safetensors"),
        ("resnet18.a3_in1k", "model.safetensors"),
        ("resnet18.a3_in1k.safetensors",),
        ("resnet18.a1_in1k", "resnet18.a3_in1k.pth"),
        ("resnet18_a3_0-40c531c8.pth",),
    ],
)
def test_the_path_of_a_file_says_which_version_it_is(parts, file):
    found = recipe(NAME, file(*parts))
    assert found == of_version("a3_in1k") and found.image_size == SMALL


def test_relative_paths_are_understood(file, monkeypatch):
    monkeypatch.chdir(file("resnet18.a3_in1k", "model.safetensors").parent)
    assert recipe(NAME, "./model.safetensors").image_size == SMALL


def test_the_content_of_a_file_says_which_version_it_is(file, monkeypatch):
    path = file("mine.pth", content=b"weights")
    checksum = hashlib.sha256(b"weights").hexdigest()[:8]
    found = recipes._versions(resolve_backbone(NAME))
    assert {v.name: v.former for v in found}["a3_in1k"] == "40c531c8"
    known = [replace(v, former=checksum) if v.name == "a3_in1k" else v for v in found]
    monkeypatch.setattr(recipes, "_versions", lambda backbone: tuple(known))
    assert recipe(NAME, path).image_size == SMALL


def test_what_timm_has_saved_beside_a_file_is_its_recipe(file):
    settings = {"input_size": [3, 96, 96], "mean": [0.1, 0.2, 0.3], "crop_pct": 0.9}
    about = {"architecture": "resnet18", "pretrained_cfg": settings}
    path = file("mine", "model.safetensors")
    file("mine", "config.json", content=json.dumps(about).encode())
    found = recipe(NAME, path)
    assert found == recipe(f"{NAME}.a1_in1k", path)
    assert (found.image_size, found.resize, found.mean) == (96, 106, (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"\xff", b'{"architecture": "resnet34"}', b'{"model_type": "bert"}'],
)
def test_other_files_beside_a_file_do_not_matter(content, file):
    file("mine", "config.json", content=content)
    with pytest.warns(RecipeWarning, match="'a1_in1k' is used"):
        resolve_source(NAME, file("mine", "model.safetensors"), 0, None)


def test_a_file_of_unknown_version_warns_once_and_says_what_to_type(file):
    path = file("own.pth")
    with pytest.warns(RecipeWarning) as caught:
        for _ in range(2):
            found = resolve_source(NAME, path, 0, None).input
    (warning,) = caught
    words = str(warning.message)
    assert found == of_version("a1_in1k") and found.image_size == LARGE
    assert "'a1_in1k', 'a2_in1k' (image_size=224" in words
    assert "'a3_in1k' (image_size=160" in words
    assert f"weights=('a1_in1k', {str(path)!r})" in words
    assert recipe(NAME, ("a1_in1k", path)) == found
    assert recipe(NAME, ("a3_in1k", path)) == of_version("a3_in1k")


def test_a_tag_in_the_name_of_the_network_chooses(file):
    path = file("own.pth")
    assert recipe(f"{NAME}.a3_in1k", path) == of_version("a3_in1k")
    assert recipe(f"{NAME}.a1_in1k", path) == of_version("a1_in1k")


def test_versions_that_agree_need_no_choice(file):
    assert recipe("timm/lcnet_050", file("own.pth")).image_size == 224


def test_versions_for_other_classes_are_known(file):
    tag, path = "in12k", file("own.pth")
    names = {v.name for v in resolve_backbone("timm/convnext_tiny").weights}
    assert tag not in names
    expected = of_version(tag, "timm/convnext_tiny")
    in_folder = file(f"convnext_tiny.{tag}", "model.safetensors")
    for weights in ((tag, path), in_folder):
        assert recipe("timm/convnext_tiny", weights) == expected


def test_architectures_whose_versions_differ_warn(file):
    """Whatever they differ in, a file of none of them is never read in silence."""
    path, n_warned = file("own.pth"), 0
    differ = {}
    for version in timm_records.versions().values():
        if version.url and version.size[0] == version.size[1]:
            differ.setdefault(version.architecture, set()).add(version.input)
    for architecture, found in list(differ.items())[::7]:
        backbone = resolve_backbone(f"timm/{architecture}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            resolve_weights(backbone, path, 0)
        assert bool(caught) == (len(found) > 1), architecture
        n_warned += bool(caught)
    assert n_warned > 5


def test_the_estimator_prepares_images_as_the_file_needs(file, photos):
    pytest.importorskip("timm")
    import timm
    import torch

    state = timm.create_model("resnet18").state_dict()
    path = file("resnet18.a3_in1k", "net.pth")
    torch.save(state, path)
    rows = [
        PretrainedCNNFeatures(n, weights=w, layer="block1", cache=None).fit_transform(
            photos[:1]
        )
        for n, w in [(NAME, path), (f"{NAME}.a3_in1k", ("a3_in1k", path))]
    ]
    assert (rows[0] == rows[1]).all()


# What is no path on this machine → what the error says.
NO_PATHS = {
    "~nouser/net.pth": "weights file begins with the name of a user who is not known",
    "https://host/net.pth": r"disk of this machine.*Got the URL 'https://host/net\.pth'",
    "s3://bucket/net.pth": r"disk of this machine.*Got the URL 's3://bucket/net\.pth'",
}


@pytest.mark.parametrize("path", NO_PATHS)
@pytest.mark.parametrize("weights", [str, lambda path: ("IMAGENET1K_V1", path)])
def test_what_is_no_path_on_this_machine_is_refused(path, weights):
    with pytest.raises(ValueError, match=NO_PATHS[path]):
        resolve_source("resnet18", weights(path), 0, None)


@pytest.mark.parametrize("weights", [("IMAGENET1K_V1", 3), (None, "net.pth"), ("a",)])
def test_a_tuple_of_other_things_is_refused(weights):
    with pytest.raises(ValueError, match=r"must be \(name of a published version, pa"):
        resolve_source("resnet18", weights, 0, None)


def test_members_of_torchvisions_enumerations_say_what_to_pass(photos):
    from torchvision.models import ResNet18_Weights

    default = ResNet18_Weights.DEFAULT
    with pytest.raises(ValueError, match=r"for torchvision's .* pass its \.name"):
        PretrainedCNNFeatures("resnet18", weights=default).fit(photos)
    source = resolve_source("resnet18", default.name, 0, None)
    assert source.version.name == default.name


@pytest.mark.parametrize("name", ["folder/net.pth", "net.safetensors"])
def test_a_file_as_backbone_says_where_to_pass_it(name):
    with pytest.raises(ValueError, match=r"path of the file as weights=\.\.\."):
        resolve_source(name, "default", 0, None)


def test_a_folder_as_backbone_must_be_one_of_timm(tmp_path):
    with pytest.raises(
        ValueError, match=r"A folder must have the config\.json"
    ) as error:
        resolve_backbone(str(tmp_path))
    assert "Did you mean" not in str(error.value)


def test_a_folder_of_an_unknown_user_is_refused():
    for resolve in (resolve_backbone, resolve_text):
        with pytest.raises(ValueError, match=r"begins with the name of a user"):
            resolve("~nouser/net")
