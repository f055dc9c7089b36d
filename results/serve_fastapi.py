"""What `cifar serve` is compared with: a plain FastAPI application around a bare ONNX Runtime session.

Run as a program, `python serve_fastapi.py model.onnx PORT`. It answers `POST /predict` with the bytes of a picture, in
FastAPI's pool of threads, without limits, metrics or an access log.
"""

import io
import json
import sys

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps


def create_app(model: str) -> FastAPI:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = json.loads(session.get_modelmeta().custom_metadata_map["cifar.class_names"])
    app = FastAPI()

    def classify(content: bytes) -> dict[str, object]:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        pixels = np.array(ImageOps.fit(picture, (32, 32), Image.Resampling.BICUBIC))  # (32, 32, 3), uint8
        probabilities = session.run(["probabilities"], {"images": pixels[np.newaxis]})[0][0]  # (10,)
        return {"label": names[probabilities.argmax()], "probability": float(probabilities.max())}

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, object]:
        return await run_in_threadpool(classify, await request.body())

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), port=int(sys.argv[2]), access_log=False, log_level="warning")
