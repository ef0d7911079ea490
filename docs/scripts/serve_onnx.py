"""A service: uvicorn serve_onnx:app, with model.onnx beside it."""

import json

import numpy as np
import onnxruntime
from fastapi import FastAPI, HTTPException, UploadFile
from PIL import Image, ImageOps

app = FastAPI()
session = onnxruntime.InferenceSession("model.onnx")
about = session.get_modelmeta().custom_metadata_map
classes = [str(name) for name in json.loads(about["classes"])]


@app.post("/classify")
def classify(photo: UploadFile):
    try:
        image = ImageOps.exif_transpose(Image.open(photo.file)).convert(
            "RGB"
        )
    except OSError as error:
        raise HTTPException(422, "not a photo") from error
    _, (likely,) = session.run(None, {"image": np.asarray(image)})
    return dict(zip(classes, likely.tolist(), strict=True))
