"""Draw the pictures of the docs as SVG, in the colours of the light or dark page.

    pip install scikit-image
    python tools/draw_pictures.py

It writes docs/pictures/*.svg. The photo is Chelsea from scikit-image (CC0, Stéfan van
der Walt). The results of the search come from tools/measure_search.py.
"""

import argparse
import base64
import html
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from skdeepfeat import PretrainedCNNFeatures, list_layers

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
PRIMARY, ACCENT = "var(--pst-color-primary)", "var(--pst-color-accent)"
FAINT = "var(--pst-color-border)"
COLOURS = ["#3b82f6", "#e2852b", "#3fa34d", "#c2559d", "#7c7f86"]
HEAD = (
    '<svg xmlns="http://www.w3.org/2000/svg" class="picture {kind}" role="img" '
    'viewBox="0 0 {width} {height}" fill="currentColor" font-size="15" '
    'text-anchor="middle"><title>{title}</title>'
    '<defs><marker id="{id}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
    'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
)


# Parts of a picture -----------------------------------------------------------------


def text(x, y, words, **attributes):
    """A line of text, centred at x by default."""
    written = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in attributes.items())
    return f'<text x="{x:g}" y="{y:g}"{written}>{html.escape(words)}</text>'


def small(x, y, words, **attributes):
    """A smaller line of text, for explanations."""
    return text(x, y, words, **{"font_size": 13, "opacity": 0.8} | attributes)


def rectangle(x, y, width, height, stroke="currentColor", fill="none", **attributes):
    written = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in attributes.items())
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
        f'stroke="{stroke}" fill="{fill}"{written}/>'
    )


def box(x, y, width, height, title, *lines, stroke="currentColor", **attributes):
    """A rectangle with a title and smaller lines below it, all centred."""
    top = y + height / 2 + 5 - 9 * len(lines)
    middle = x + width / 2
    words = [small(middle, top + 18 * i, line) for i, line in enumerate(lines, 1)]
    frame = rectangle(x, y, width, height, stroke, **attributes)
    return frame + text(middle, top, title, font_weight="bold") + "".join(words)


def arrow(name, *points, dashed=False):
    """A line through points, with a head at the end."""
    path = "M" + "L".join(f"{x:g} {y:g}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="{path}" fill="none" stroke="currentColor" stroke-width="1.3" '
        f'marker-end="url(#{name}-head)"{dash}/>'
    )


def photograph(x, y, side, pixels, quality=80):
    """An image of uint8 pixels inside the picture, with long side `side`."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    address = base64.b64encode(buffer.getvalue()).decode()
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    return (
        f'<image x="{x:g}" y="{y:g}" width="{width * scale:g}" '
        f'height="{height * scale:g}" href="data:image/jpeg;base64,{address}"/>'
    )


def write(name, title, width, height, *parts, kind=""):
    """Write one file; `kind` is an additional class for the style sheet."""
    head = HEAD.format(
        kind=kind, width=width, height=height, title=title, id=f"{name}-head"
    )
    content = head + "\n".join(parts) + "</svg>\n"
    (FOLDER / f"{name}.svg").write_text(content)
    print(f"{name:20} {len(content) / 1000:6.1f} kB")


# The walk ---------------------------------------------------------------------------

STATIONS = [
    ("X", "paths, arrays,", "uploads, a column"),
    ("images", "decoded, upright,", "known by content"),
    ("batches", "resized, cropped,", "normalized"),
    ("activations", "a frozen network,", "up to your layer"),
    ("pooled rows", "one number for", "each channel"),
    ("store", "in memory", "or in a folder"),
    ("array", "(n, features),", "float32"),
]
WALK = "The walk of an image, from X to an array of features"


def walk_wide():
    """Two rows; images that the store knows take the short way down."""
    places = [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (1, 1), (0, 1)]
    corners = [(10 + 182 * c, 10 + 130 * r) for c, r in places]
    boxes = [
        box(x, y, 144, 78, *station, stroke=PRIMARY)
        for (x, y), station in zip(corners, STATIONS, strict=True)
    ]
    right = [arrow("walk", (x + 144, 49), (x + 182, 49)) for x, _ in corners[:3]]
    back = [
        arrow("walk", (628, 88), (628, 140)),
        arrow("walk", (556, 179), (336, 179)),
        arrow("walk", (192, 179), (154, 179)),
        arrow("walk", (264, 88), (264, 140), dashed=True),
        small(276, 118, "in the store already", text_anchor="start"),
        small(446, 170, "computed once"),
    ]
    write("walk", WALK, 710, 228, *boxes, *right, *back, kind="wide")


def walk_narrow():
    """The same in one column, for narrow screens."""
    parts = []
    for i, (title, *lines) in enumerate(STATIONS):
        y = 10 + 78 * i
        parts.append(
            box(60, y, 250, 56, title, " ".join(lines), stroke=PRIMARY),
        )
        if i < len(STATIONS) - 1:
            parts.append(arrow("walk-narrow", (185, y + 56), (185, y + 78)))
    around = [(60, 116), (30, 116), (30, 428), (60, 428)]
    parts.append(arrow("walk-narrow", *around, dashed=True))
    turned = {"transform": "rotate(-90 20 272)"}
    parts.append(small(20, 272, "in the store already", **turned))
    write("walk-narrow", WALK, 340, 545, *parts, kind="narrow")


# Results of the search --------------------------------------------------------------


def accuracy(result):
    """Lines of accuracy by depth, one for each head, with a legend below."""
    layers, lines = result["layers"], result["accuracy"]
    left, right, top, bottom = 48, 470, 16, 230

    def place(i, score):
        x = left + 14 + i * (right - left - 28) / (len(layers) - 1)
        return x, bottom - (score - 0.2) / 0.8 * (bottom - top)

    parts = []
    for score in (0.2, 0.4, 0.6, 0.8, 1.0):
        _, y = place(0, score)
        parts.append(f'<path d="M{left} {y:g}H{right}" stroke="{FAINT}"/>')
        parts.append(small(left - 8, y + 4, f"{score:.1f}", text_anchor="end"))
    for i, layer in enumerate(layers):
        parts.append(small(place(i, 0)[0], bottom + 18, layer, font_size=11))
    for i, (name, scores) in enumerate(lines.items()):
        points = [place(*pair) for pair in enumerate(scores)]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        colour = COLOURS[i]
        parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>'
        )
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
            for x, y in points
        ]
        x, y = 62 + 150 * (i % 3), bottom + 46 + 22 * (i // 3)
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="5" fill="{colour}"/>')
        parts.append(small(x + 11, y, name, text_anchor="start"))
    title = "Accuracy by depth of the features and by classifier"
    write("accuracy", title, 480, 312, *parts)


def seconds(result):
    """One bar for each way to search."""
    longest = max(result["seconds"].values())
    parts = []
    for i, (name, value) in enumerate(result["seconds"].items()):
        y, width = 24 + 90 * i, max(2, 380 * value / longest)
        parts.append(text(20, y, name, text_anchor="start"))
        parts.append(
            f'<rect x="20" y="{y + 10}" width="{width:.1f}" height="34" rx="3" '
            f'fill="{COLOURS[i]}"/>'
        )
        written = f"{value:.1f} s"
        parts.append(text(30 + width, y + 33, written, text_anchor="start"))
    n, fits = result["images"], result["fits"]
    y = 24 + 90 * len(result["seconds"]) + 10
    parts.append(small(20, y, f"{fits} fits over {n} images", text_anchor="start"))
    write("seconds", "Seconds of a grid search", 480, y + 14, *parts)


# What a layer sees ------------------------------------------------------------------

SEEN = ["stem", "block2", "block3", "block5", "block7"]
# A palette from dark to light that is visible on light and dark pages.
PALETTE = np.array([[16, 26, 60], [52, 78, 150], [230, 130, 60], [255, 235, 160]])


def square_photo(side=150):
    """The centre of the photo, as the network receives it."""
    photo = Image.fromarray(data.chelsea())
    width, height = photo.size
    left = (width - height) // 2
    return photo.crop((left, 0, left + height, height)).resize((side, side))


def maps_of(photo, layer):
    """All maps of one layer, (channels, height, width)."""
    (found,) = [one for one in list_layers("mini") if one.alias == layer]
    features = PretrainedCNNFeatures(
        layer=layer, pooling="flatten", image_size=224, cache=None
    )
    maps = features.transform([photo])
    side = int((maps.size / found.features) ** 0.5)
    return maps.reshape(found.features, side, side)


def in_colours(values, side=150):
    """A map as pixels, from its minimum to its maximum."""
    scaled = (values - values.min()) / (np.ptp(values) or 1) * (len(PALETTE) - 1)
    steps = np.arange(len(PALETTE))
    pixels = [np.interp(scaled, steps, channel) for channel in PALETTE.T]
    image = Image.fromarray(np.stack(pixels, -1).astype(np.uint8))
    return np.array(image.resize((side, side), Image.Resampling.NEAREST))


def what_a_layer_sees():
    """The photo, then the map of the channel that varies most at several depths."""
    photo = square_photo()
    parts = [photograph(5, 5, 150, np.array(photo)), small(80, 172, "the photo")]
    for i, layer in enumerate(SEEN, 1):
        maps = maps_of(photo, layer)
        strongest = maps[maps.var((1, 2)).argmax()]
        x, y = 5 + 160 * (i % 3), 5 + 185 * (i // 3)
        parts.append(photograph(x, y, 150, in_colours(strongest), quality=45))
        n, height, width = maps.shape
        label = f"{layer}: {n} × {height} × {width}"
        parts.append(small(x + 75, y + 167, label))
    title = "One map of each of five layers, from edges to objects"
    write("layers", title, 480, 368, *parts)


# Preprocessing ----------------------------------------------------------------------


def preprocessing():
    """A photo, resized to its short side, and the crop that enters the network."""
    photo = Image.fromarray(data.chelsea())
    resized = photo.resize((168, 112))
    crop = resized.crop((28, 0, 140, 112))
    name = "preprocessing"
    parts = [
        photograph(5, 8, 210, np.array(photo.resize((210, 140)))),
        small(110, 172, "file: 451 × 300"),
        arrow(name, (222, 78), (246, 78)),
        photograph(252, 34, 132, np.array(resized)),
        rectangle(252 + 22, 34, 88, 88, "#fff", stroke_width=2),
        small(318, 172, "resize: 168 × 112"),
        arrow(name, (390, 78), (406, 78)),
        photograph(410, 44, 68, np.array(crop)),
        small(440, 172, "crop: 112 × 112"),
    ]
    title = "The preprocessing of the network mini: resize, then centre crop"
    write(name, title, 490, 184, *parts)


# Diagrams ---------------------------------------------------------------------------

KINDS = [
    ["path", "bytes", "PIL image"],
    ["(h, w, 3) array", "(3, h, w) tensor", "open file"],
    ["upload", "URL", "flat row"],
    ["HDF5 or zarr", "Hugging Face", "frame column"],
]


def kinds_of_input():
    parts = [
        rectangle(5 + 105 * c, 8 + 40 * r, 98, 30, PRIMARY)
        + small(54 + 105 * c, 28 + 40 * r, kind, font_size=12, opacity=1)
        for r, row in enumerate(KINDS)
        for c, kind in enumerate(row)
    ]
    parts += [
        arrow("images", (322, 84), (350, 84)),
        box(354, 50, 122, 68, "one row", "of features each", stroke=ACCENT),
        small(160, 186, "all in a list, an array, a Series or a table column"),
    ]
    write("images", "Kinds of image that X may hold", 482, 198, *parts)


def what_the_store_shares():
    """What requests features on the left, the network that runs once on the right."""
    askers = ["folds", "clones", "candidates", "threads", "processes", "tomorrow's run"]
    parts = []
    for i, name in enumerate(askers):
        y = 8 + 38 * i
        parts.append(rectangle(5, y, 124, 30))
        parts.append(small(67, y + 20, name, opacity=1))
        parts.append(arrow("store", (129, y + 15), (196, 80 + 13 * i)))
    parts += [
        box(200, 62, 120, 100, "store", "image × layer", "→ row", stroke=ACCENT),
        arrow("store", (320, 95), (366, 95)),
        arrow("store", (366, 128), (320, 128)),
        small(343, 84, "new"),
        small(343, 148, "rows"),
        box(370, 62, 106, 100, "network", "once for", "each image", stroke=PRIMARY),
    ]
    write("store", "What shares one store", 482, 240, *parts)


STATES = {"frozen": FAINT, "learns": PRIMARY}
PHASES = [
    ("1. head_epochs", ["frozen", "frozen", "frozen", "learns"]),
    ("2. epochs", ["frozen", "frozen", "learns", "learns"]),
]


def phases():
    """Two stacks of blocks that show what learns in each phase, with learning rates."""
    names = ["stem … block5", "block6", "block7", "head"]
    rates = [["–", "–", "–", "lr"], ["–", "–", "lr × decay", "lr"]]
    parts = []
    for p, (title, states) in enumerate(PHASES):
        left = 5 + 240 * p
        parts.append(text(left + 80, 20, title, font_weight="bold"))
        for i, (name, state) in enumerate(zip(names, states, strict=True)):
            y = 168 - 45 * i
            opacity = 0.25 if state == "learns" else 0.12
            fill = PRIMARY if state == "learns" else "currentColor"
            parts.append(
                rectangle(left, y, 140, 36, STATES[state], fill, fill_opacity=opacity)
            )
            parts.append(small(left + 70, y + 23, name, opacity=1))
            parts.append(small(left + 150, y + 23, rates[p][i], text_anchor="start"))
    parts.append(arrow("phases", (178, 116), (236, 116)))
    parts.append(small(240, 232, "coloured blocks learn at the rate next to them"))
    write("phases", "The two phases of fine-tuning", 482, 244, *parts)


def table_columns():
    """A table whose columns are processed separately and then combined."""
    parts = [
        box(5, 8, 110, 64, "photo", "paths", stroke=PRIMARY),
        box(5, 96, 110, 64, "weight", "numbers", stroke=PRIMARY),
        arrow("columns", (115, 40), (146, 40)),
        arrow("columns", (115, 128), (146, 128)),
        box(150, 8, 146, 64, "features", "1,280 columns"),
        box(150, 96, 146, 64, "StandardScaler", "1 column"),
        arrow("columns", (296, 40), (346, 74)),
        arrow("columns", (296, 128), (346, 94)),
        box(350, 52, 126, 64, "classifier", "1,281 columns", stroke=ACCENT),
    ]
    write("columns", "A column of photos beside numbers", 482, 170, *parts)


def who_does_what():
    """The caller with the store, workers with networks, and where photos are."""
    name, parts = "cluster", []
    for i in range(3):
        y = 10 + 66 * i
        parts += [
            box(220, y, 126, 54, "worker", "reads, computes", stroke=PRIMARY),
            arrow(name, (136, 76 + 22 * i), (216, y + 20)),
            arrow(name, (216, y + 36), (136, 87 + 22 * i), dashed=True),
            arrow(name, (390, 81 + 22 * i), (350, y + 27)),
        ]
    parts += [
        box(10, 64, 122, 78, "caller", "your program,", "the store", stroke=ACCENT),
        box(394, 64, 82, 78, "photos", "a disk", "or a URL"),
        small(176, 28, "paths"),
        small(176, 196, "rows"),
    ]
    write(name, "Who does what on a cluster", 482, 212, *parts)


def main():
    FOLDER.mkdir(exist_ok=True)
    result = json.loads((FOLDER / "search.json").read_text())
    walk_wide()
    walk_narrow()
    accuracy(result)
    seconds(result)
    what_a_layer_sees()
    preprocessing()
    kinds_of_input()
    what_the_store_shares()
    phases()
    table_columns()
    who_does_what()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
