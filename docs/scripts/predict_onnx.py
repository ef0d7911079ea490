"""Classify photos: python predict_onnx.py model.onnx photo.jpg ..."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
about = session.get_modelmeta().custom_metadata_map
classes = json.loads(about["classes"])
for path in sys.argv[2:]:
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    _, (likely,) = session.run(None, {"image": np.asarray(photo)})
    print(path, classes[likely.argmax()], f"{likely.max():.4f}")
