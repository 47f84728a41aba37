"""LitServe with pytorch-grad-cam, as the two libraries' own examples have it; LitServe's defaults.

``python litserve_grad_cam.py PORT``: POST /predict with the field ``request`` holding a picture.
"""

import io
import sys

import litserve
import numpy as np
import torch
import torchvision
from fastapi import Response, UploadFile
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from torchvision.transforms import v2


class Explained(litserve.LitAPI):
    """Decode, predict and explain, overlay."""

    def setup(self, device: str) -> None:
        """Load the model."""
        torch.manual_seed(0)
        self.model = torchvision.models.resnet18().eval().to(device)
        self.cam = GradCAM(self.model, [self.model.layer4[-1]])
        self.look = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])
        self.tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                                  v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])  # fmt: skip

    def decode_request(self, request: UploadFile) -> Image.Image:
        """Return a picture."""
        return Image.open(io.BytesIO(request.file.read())).convert("RGB")

    def predict(self, picture: Image.Image) -> tuple[Image.Image, np.ndarray]:
        """Return the crop and its map."""
        seen = self.look(picture)
        # LitServe predicts in inference mode, in which nothing can be derived.
        with torch.inference_mode(False), torch.enable_grad():
            return seen, self.cam(self.tensor(seen)[None].clone(), targets=None)[0]

    def encode_response(self, found: tuple[Image.Image, np.ndarray]) -> Response:
        """Return the overlay as a PNG."""
        seen, grid = found
        drawn = show_cam_on_image(np.asarray(seen, np.float32) / 255, grid, use_rgb=True)
        buffer = io.BytesIO()
        Image.fromarray(drawn).save(buffer, "PNG")
        return Response(buffer.getvalue(), media_type="image/png")


if __name__ == "__main__":
    server = litserve.LitServer(Explained(), accelerator="cpu")
    server.run(port=int(sys.argv[1]), host="127.0.0.1", num_api_servers=1, generate_client_file=False)
