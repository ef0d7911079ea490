"""Random changes of training images: of each its own, and those of torchvision."""

import math

import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from skdeepfeat._finetuning import augmentation
from skdeepfeat._images.recipe import InputSpec

SPEC = InputSpec(32, 40)
NO_MARGIN = InputSpec(32, None)
WIDE = v2.TrivialAugmentWide()


@pytest.fixture
def batch():
    """Smooth images (16, 3, 40, 40), 8-bit values."""
    coarse = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255
    return v2.functional.resize(coarse, [40, 40]).round().clamp(0, 255)


def one_image(batch):
    return batch[:1].expand(len(batch), -1, -1, -1)


def augmented(name, batch, spec=SPEC, seed=0):
    torch.manual_seed(seed)
    return augmentation.augmentation(name, spec)(batch)


@pytest.mark.parametrize("name", ["light", "standard", "strong"])
def test_each_image_is_changed_in_its_own_way(batch, name):
    """A transform of torchvision would change all images of a batch alike."""
    out = augmented(name, one_image(batch))
    assert out.shape == (16, 3, 32, 32)
    n_distinct = len({image.numpy().tobytes() for image in out})
    assert n_distinct > 12
    same = v2.RandomResizedCrop(32, antialias=True)(one_image(batch))
    assert len({image.numpy().tobytes() for image in same}) == 1


@pytest.mark.parametrize("name", ["light", "standard", "strong"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_seed_gives_the_same_changes_within_range(batch, name, dtype):
    batch = batch.to(dtype)
    first, again, other = (augmented(name, batch, seed=s) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 255


def test_nothing_is_changed_by_none(batch):
    assert torch.equal(augmented("none", batch), batch)


@pytest.mark.parametrize("spec", [SPEC, NO_MARGIN])
def test_light_shifts_by_whole_pixels_and_mirrors(batch, spec):
    """Each result is a part of the image, or of its mirror image."""
    images = batch if augmentation.margin(spec) else batch[..., :32, :32]
    padding = 0 if augmentation.margin(spec) else 2
    wide = torch.nn.functional.pad(images, [padding] * 4, mode="reflect")
    out = augmented("light", images, spec)
    ways = []
    for image, result in zip(wide, out, strict=True):
        n = image.shape[-1] - 31
        found = [
            (top, left, mirrored)
            for mirrored, source in enumerate([image, image.flip(2)])
            for top in range(n)
            for left in range(n)
            if torch.allclose(
                source[:, top : top + 32, left : left + 32], result, atol=1e-2
            )
        ]
        assert len(found) == 1
        ways += found
    assert {mirrored for _, _, mirrored in ways} == {0, 1}
    assert len({top for top, _, _ in ways}) > 2


@pytest.mark.parametrize("shares", [(0.25, 1.0), (0.5, 1.0)])
def test_crops_are_distributed_as_those_of_torchvision(shares):
    torch.manual_seed(0)
    boxes, found = augmentation.random_boxes(4000, 40, shares, (3 / 4, 4 / 3))
    expected = [
        v2.RandomResizedCrop(32, scale=shares).make_params([torch.zeros(3, 40, 40)])
        for _ in range(4000)
    ]
    assert found.float().mean() > 0.99
    for name in ("top", "left", "height", "width"):
        ours = getattr(boxes, name)[found].sort().values
        theirs = torch.tensor([float(box[name]) for box in expected]).sort().values
        for level in (0.1, 0.5, 0.9):
            difference = ours.quantile(level) - theirs.quantile(level)
            assert abs(difference) <= 1, (name, level)
    assert ((boxes.top >= 0) & (boxes.top + boxes.height <= 40))[found].all()


@pytest.mark.parametrize("filter_", ["bilinear", "bicubic"])
def test_a_part_is_resized_as_by_torchvision(batch, filter_, monkeypatch):
    """Up to the smoothing where a part shrinks, and a rim of one pixel."""
    box = augmentation.Boxes(*(torch.full((16,), float(v)) for v in (3, 5, 32, 30)))
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.ones(shape))  # no mirror
    ours = augmentation._resized(batch, box, 32, filter_)
    theirs = v2.functional.resized_crop(
        batch, 3, 5, 32, 30, [32, 32], InterpolationMode(filter_), antialias=False
    )
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(ours[inner], theirs[inner], rtol=0, atol=0.1)


def test_colours_change_as_by_torchvision(batch):
    """Three steps in the order of each image, here without values to clip."""
    images = 90 + 0.3 * batch
    torch.manual_seed(0)
    ours = augmentation.jitter(0.2, images)
    torch.manual_seed(0)
    order = torch.rand(16, 3).argsort(1)
    factors = torch.empty(3, 16).uniform_(0.8, 1.2)
    change = (
        v2.functional.adjust_brightness,
        v2.functional.adjust_contrast,
        v2.functional.adjust_saturation,
    )
    for i, image in enumerate(images / 255):
        for kind, factor in zip(order[i], factors[:, i], strict=True):
            image = change[kind](image, factor.item())
        torch.testing.assert_close(ours[i], image * 255, rtol=0, atol=1e-2)
    assert len({tuple(row.tolist()) for row in order}) > 3


@pytest.mark.parametrize("strength", [1.0, -0.6, 0.2])
@pytest.mark.parametrize("kind", list(WIDE._AUGMENTATION_SPACE))
def test_a_random_step_is_that_of_torchvision(batch, kind, strength):
    number = list(WIDE._AUGMENTATION_SPACE).index(kind)
    magnitudes, signed = WIDE._AUGMENTATION_SPACE[kind]
    found = magnitudes(31, 40, 40)
    magnitude = 0.0
    if found is not None:
        magnitude = float(found[round(abs(strength) * 30)])
        magnitude *= math.copysign(1, strength) if signed else 1
    theirs = torch.stack(
        [
            WIDE._apply_image_or_video_transform(
                image, kind, magnitude, InterpolationMode.NEAREST, WIDE._fill
            )
            for image in batch.byte()
        ]
    )
    ours = augmentation.TRIVIAL[number](batch, torch.full((16,), strength))
    far = (ours - theirs.float()).abs() > 2  # a place halfway between two pixels
    assert far.float().mean() < 0.01


def test_all_kinds_of_steps_come_about(batch, monkeypatch):
    seen = set()

    def noted(number):
        return lambda images, m: (seen.add(number), images)[1]

    steps = [noted(i) for i in range(len(augmentation.TRIVIAL))]
    monkeypatch.setattr(augmentation, "TRIVIAL", steps)
    torch.manual_seed(0)
    for _ in range(10):
        assert torch.equal(augmentation.trivial_augment(batch), batch)
    assert seen == set(range(14))


def test_every_fourth_image_has_an_erased_box():
    torch.manual_seed(0)
    out = augmentation.erase(torch.full((400, 3, 32, 32), 9.0))
    black = (out == 0).all(1)
    erased = black.any((1, 2))
    assert 70 < erased.sum() < 130
    for image in black[erased]:
        height, width = image.any(1).sum(), image.any(0).sum()
        assert image.sum() == height * width
        assert 0.01 < height * width / 32**2 < 0.4


def test_a_callable_gets_single_images_of_8_bits(batch):
    seen = []

    def function(image):
        seen.append((image.dtype, tuple(image.shape)))
        return image.flip(2)

    out = augmented(function, batch + 0.4)
    assert seen == [(torch.uint8, (3, 40, 40))] * 16
    assert torch.equal(out.float(), v2.functional.center_crop(batch.flip(3), [32, 32]))


def test_a_callable_may_return_images_of_different_sizes(batch):
    sizes = iter(range(32, 48))

    def larger(image):
        return v2.functional.resize(image, [next(sizes), 40])

    assert augmented(larger, batch).shape == (16, 3, 32, 32)


UNUSABLE = {
    "floats from 0 to 1": lambda image: image / 255,
    "floats from 0 to 255": lambda image: image.float(),
    "a mask": lambda image: image > 0,
    "one channel": lambda image: image[:1],
    "channels last": lambda image: image.permute(1, 2, 0),
    "a batch": lambda image: image[None],
    "smaller than the input": lambda image: image[:, :31],
    "an array": lambda image: image.numpy(),
    "nothing": lambda image: None,
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_what_a_callable_returns_is_checked(batch, kind):
    with pytest.raises(ValueError, match=r"'augment' parameter .* must return a"):
        augmented(UNUSABLE[kind], batch)
