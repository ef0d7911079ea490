"""Mutated images: what cannot be read costs its own row, and nothing else.

    python tests/benchmarks/fuzz_images.py --images 100000

Images of all formats that are read are cut, flipped, padded and spliced at random. In
every call some are whole: their features must be those of a clean call, bit for bit,
and every row of nan must be in ``errors_``. Prints what was refused and why, and the
peak of the memory.
"""

import argparse
import collections
import io
import resource
import time
import warnings

import numpy as np
import torch
from PIL import Image

from skdeepfeat import Backbone, PretrainedCNNFeatures

AT_ONCE, WHOLE = 200, 8

# Format of the file, mode of the image, options of Pillow's writer.
FILES = [
    ("JPEG", "RGB", {"quality": 90}),
    ("JPEG", "CMYK", {"progressive": True}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {}),
    ("PNG", "I;16", {}),
    ("WEBP", "RGB", {"lossless": True}),
    ("WEBP", "RGBA", {}),
    ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", "1", {"compression": "group4"}),
    ("BMP", "RGB", {}),
    ("GIF", "P", {}),
    ("PPM", "RGB", {}),
    ("PPM", "L", {}),
    ("JPEG2000", "RGB", {}),
    ("AVIF", "RGB", {}),
    ("HEIF", "RGB", {}),
]


def whole_images(rng) -> list[bytes]:
    """One small image of each kind of file that can be written here."""
    made = []
    for kind, mode, options in FILES:
        if kind not in Image.SAVE:
            print(f"{kind} cannot be written here, and is left out")
            continue
        coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
        image = Image.fromarray(coarse).resize((64, 48), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        grey = np.asarray(image.convert("L"))
        if mode == "I;16":
            image = Image.fromarray(grey.astype(np.uint16) * 257)
        elif mode == "F":
            image = Image.fromarray(grey.astype(np.float32) / 255)
        else:
            image = image.convert(mode)
        image.save(file, kind, **options)
        made.append(file.getvalue())
    return made


def cut(data: bytearray, rng) -> bytearray:
    return data[: rng.integers(len(data))]


def flip(data: bytearray, rng) -> bytearray:
    for place in rng.integers(len(data), size=rng.integers(1, 8)):
        data[place] ^= 1 << rng.integers(8)
    return data


def change_head(data: bytearray, rng) -> bytearray:
    for place in rng.integers(min(64, len(data)), size=rng.integers(1, 4)):
        data[place] = rng.integers(256)
    return data


def insert(data: bytearray, rng) -> bytearray:
    place = rng.integers(len(data))
    return data[:place] + rng.bytes(rng.integers(1, 40)) + data[place:]


def leave_out(data: bytearray, rng) -> bytearray:
    place = rng.integers(len(data))
    return data[:place] + data[place + rng.integers(1, 40) :]


def blank(data: bytearray, rng) -> bytearray:
    place, n = rng.integers(len(data)), rng.integers(1, 64)
    data[place : place + n] = bytes([rng.choice([0, 255])]) * n
    return data


MUTATIONS = [cut, flip, change_head, insert, leave_out, blank]


def mutated(whole: list[bytes], rng) -> bytes:
    """One of the images, changed once or twice."""
    data = bytearray(whole[rng.integers(len(whole))])
    for _ in range(rng.integers(1, 3)):
        data = MUTATIONS[rng.integers(len(MUTATIONS))](data, rng) if data else data
    return bytes(data)


def tiny_features() -> PretrainedCNNFeatures:
    """Features of a network that takes no time beside the decoding."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    backbone = Backbone.from_module(net, image_size=32)
    return PretrainedCNNFeatures(backbone, cache=None, on_error="nan")


def mixed(whole: list[bytes], rng) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Mutated images with whole ones among them: their places, and which they are."""
    rows = [mutated(whole, rng) for _ in range(AT_ONCE - WHOLE)]
    chosen = rng.integers(len(whole), size=WHOLE)
    places = np.sort(rng.choice(AT_ONCE, WHOLE, replace=False))
    for place, which in zip(places, chosen, strict=True):
        rows.insert(place, whole[which])
    return rows, places, chosen


def try_some(features, whole: list[bytes], expected: np.ndarray, rng) -> list[str]:
    """The reasons why images of one call were refused; checks all other rows."""
    rows, places, chosen = mixed(whole, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = features.transform(rows)
    np.testing.assert_array_equal(out[places], expected[chosen])
    failed = {row: reason for row, _, reason in features.errors_}
    assert set(np.flatnonzero(np.isnan(out).any(1))) == set(failed)
    return [reason[:70] for reason in failed.values()]


def load_readers() -> None:
    """Register all readers of Pillow, and that of HEIF if it is installed."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        print("pillow-heif is not installed")
    Image.init()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    load_readers()
    rng, features = np.random.default_rng(options.seed), tiny_features()
    whole = whole_images(rng)
    expected = features.transform(whole)
    assert np.isfinite(expected).all()
    reasons: collections.Counter[str] = collections.Counter()
    started, n_done = time.perf_counter(), 0
    while n_done < options.images:
        reasons.update(try_some(features, whole, expected, rng))
        n_done += AT_ONCE - WHOLE
    seconds, n_refused = time.perf_counter() - started, reasons.total()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{n_done} mutated images of {len(whole)} kinds in {seconds:.0f} s")
    print(
        f"{n_done - n_refused} were read, {n_refused} refused; peak memory {peak} MiB"
    )
    for reason, count in reasons.most_common(25):
        print(f"{count:>7}  {reason}")


if __name__ == "__main__":
    main()
