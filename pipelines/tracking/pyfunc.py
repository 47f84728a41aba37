"""The model as MLflow's own flavour, from code:
``mlflow.pyfunc.load_model("models:/NAME@champion").predict(frame)``.

A copy of this file and of the ``models`` package, below ``camera_lucida``, lies beside the bundle, so that
the logged model loads wherever torch and captum are installed, without this project and without unpickling
anything. The input is a column ``image`` of encoded images (bytes); text is refused, so no path or URL can be
made to be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class LucidaModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Rows of images to rows of predicted label, its score, and the scores of all classes."""

    def load_context(self, context: Any) -> None:
        """Load the bundle with all of its checks."""
        from models.bundle import load_bundle

        self.bundle = load_bundle(Path(context.artifacts["bundle"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict each row's image; raises the same errors as the service for one that cannot be used."""
        import torch

        from models.errors import UnreadableImage
        from models.images.decode import decode_image
        from models.networks.predictions import rank_classes

        model = self.bundle.model
        rows = []
        for data in model_input["image"]:
            if not isinstance(data, bytes):
                raise UnreadableImage(
                    f"The column image must hold encoded pictures as bytes, not {type(data)}."
                )
            x, _ = model.geometry.prepare(decode_image(data))
            with torch.no_grad():
                ranking = rank_classes(model(x.unsqueeze(0))[0], model.classes, model.scoring)
            scores = {
                f"score_{item.label}": item.score for item in sorted(ranking, key=lambda item: item.index)
            }
            accepted = [item.label for item in ranking if item.accepted]
            rows.append(
                {"label": ranking[0].label, "score": ranking[0].score, "accepted": accepted, **scores}
            )
        return pd.DataFrame(rows)


mlflow.models.set_model(LucidaModel())
