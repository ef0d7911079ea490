"""The resize and crop of a recipe as a graph of ONNX: one photo → network input.

Pillow resizes the width of 8-bit images and rounds, then the height, and rounds again
[1]_. The graph does the same in the same order, with the same filters, in floats.

References
----------
.. [1] Pillow, ``src/libImaging/Resample.c``.
"""

import onnx

from .._images.recipe import InputSpec, margin_colour
from .extra import IR_VERSION, OPSET

# What each recipe resizes a photo of height `h` and width `w` to: `new_h`, `new_w`.
SIZES = {
    "fixed": """
  new_h = Constant <value_ints = [{length}]> ()
  new_w = Identity (new_h)
""",
    "crop": """
  length = Constant <value_ints = [{length}]> ()
  short = Min (h, w)
  long_h = Mul (length, h)
  long_w = Mul (length, w)
  new_h = Div (long_h, short)
  new_w = Div (long_w, short)
""",
    "border": """
  length = Constant <value_floats = [{length}.0]> ()
  length_d = Cast <to = 11> (length)
  one = Constant <value_ints = [1]> ()
  h_d = Cast <to = 11> (h)
  w_d = Cast <to = 11> (w)
  longest = Max (h_d, w_d)
  ratio = Div (longest, length_d)
  shrunk_h = Div (h_d, ratio)
  shrunk_w = Div (w_d, ratio)
  round_h = Round (shrunk_h)
  round_w = Round (shrunk_w)
  whole_h = Cast <to = 7> (round_h)
  whole_w = Cast <to = 7> (round_w)
  new_h = Max (whole_h, one)
  new_w = Max (whole_w, one)
""",
}

# Pillow's filters in terms of the operator Resize.
FILTERS = {
    "bilinear": 'mode = "linear", antialias = 1, exclude_outside = 1',
    "bicubic": 'mode = "cubic", antialias = 1, exclude_outside = 1, '
    "cubic_coeff_a = -0.5",
}

READ = """
  half = Constant <value_floats = [0.5]> ()
  black = Constant <value_float = 0.0> ()
  white = Constant <value_float = 255.0> ()
  none = Constant <value_ints = [0]> ()
  rows = Constant <value_ints = [2]> ()
  columns = Constant <value_ints = [3]> ()
  batch = Constant <value_ints = [1, 3]> ()
  side = Constant <value_ints = [{side}]> ()
  colour = Constant <value = float[1,3,1,1] {{{colour}}}> ()
  h = Shape <start = 0, end = 1> (image)
  w = Shape <start = 1, end = 2> (image)
  channels = Transpose <perm = [2, 0, 1]> (image)
  single = Unsqueeze (channels, none)
  pixels = Cast <to = 1> (single)
"""

# One pass along an axis, and what Pillow rounds it to.
PASS = """
  sizes_{axis} = Concat <axis = 0> (batch, {sizes})
  exact_{axis} = Resize <coordinate_transformation_mode = "half_pixel", {filter}>
    ({given}, , , sizes_{axis})
  raised_{axis} = Add (exact_{axis}, half)
  rounded_{axis} = Floor (raised_{axis})
  resized_{axis} = Clip (rounded_{axis}, black, white)
"""

# The centre along an axis: its first place `begin`, and the margins around it.
CENTRE = """
  excess_{axis} = Sub (new_{axis}, side)
  excess_f_{axis} = Cast <to = 1> (excess_{axis})
  middle_f_{axis} = Mul (excess_f_{axis}, half)
  middle_r_{axis} = Round (middle_f_{axis})
  middle_{axis} = Cast <to = 7> (middle_r_{axis})
  begin_{axis} = Max (middle_{axis}, none)
  end_{axis} = Add (begin_{axis}, side)
  lack_{axis} = Sub (side, new_{axis})
  margin_{axis} = Max (lack_{axis}, none)
  two_{axis} = Constant <value_ints = [2]> ()
  before_{axis} = Div (margin_{axis}, two_{axis})
  after_{axis} = Sub (margin_{axis}, before_{axis})
"""

CROP = """
  cut_h = Slice (resized_w_h, begin_h, end_h, rows)
  cut = Slice (cut_h, begin_w, end_w, columns)
  shifted = Sub (cut, colour)
  margins = Concat <axis = 0>
    (none, none, before_h, before_w, none, none, after_h, after_w)
  padded = Pad (shifted, margins)
  square = Add (padded, colour)
  bytes = Cast <to = 2> (square)
  images = Transpose <perm = [0, 2, 3, 1]> (bytes)
"""


def resize_graph(spec: InputSpec):
    """The graph "image" (h, w, 3) uint8 → "images" (1, side, side, 3) uint8."""
    sizes = SIZES[
        "fixed" if spec.resize is None or spec.mode == "squash" else spec.mode
    ]
    if spec.interpolation not in FILTERS:
        raise ValueError(
            f"resize=True supports {' and '.join(FILTERS)} interpolation. The backbone "
            f"needs {spec.interpolation!r}; use resize=False, and resize with Pillow."
        )
    filter_ = FILTERS[spec.interpolation]
    colour = ", ".join(f"{level}.0" for level in margin_colour(spec))
    steps = [
        READ.format(side=spec.image_size, colour=colour),
        sizes.format(length=spec.resize or spec.image_size),
        PASS.format(axis="w", sizes="h, new_w", given="pixels", filter=filter_),
        PASS.format(
            axis="w_h", sizes="new_h, new_w", given="resized_w", filter=filter_
        ),
        *(CENTRE.format(axis=axis) for axis in "hw"),
        CROP,
    ]
    side, opset = spec.image_size, f'"" : {OPSET}, "ai.onnx.ml" : 3'
    head = f"<ir_version: {IR_VERSION}, opset_import: [{opset}]>\n"
    head += f"resize (uint8[h,w,3] image) => (uint8[1,{side},{side},3] images)\n"
    return onnx.parser.parse_model(head + "{" + "".join(steps) + "}")
