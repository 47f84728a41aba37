"""What a service says of itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from models.attribution.allowed import usable_methods
from models.attribution.registry import METHODS, get_method
from service.inference.predictor import Predictor


def describe_model(predictor: Predictor) -> dict[str, Any]:
    """Return classes, geometry, blocks, methods, metrics, limits and provenance, as JSON has them."""
    bundle, model, settings = predictor.bundle, predictor.model, predictor.settings
    explainer = predictor.explainer
    return {
        **predictor.origin().model_dump(),
        "classes": model.classes,
        "scoring": asdict(model.scoring),
        "blocks": list(model.block_names),
        "cam_block": model.cam_block,
        "default_method": explainer.default_method,
        "methods": [name for name in METHODS if name not in explainer.disabled],
        "barred_methods": explainer.barred,
        "class_blind_methods": explainer.class_blind,
        "best_methods": [choice.to_dict() for choice in bundle.best_methods],
        "method_notes": {
            method.name: {
                "title": method.title,
                "good_for": method.good_for,
                "misleads": method.misleads,
                "reads_block": method.reads_block,
                "default_block": explainer.default_block(method.name),
            }
            for method in map(get_method, usable_methods(model))
        },
        "sanity": bundle.sanity.to_dict() if bundle.sanity is not None else None,
        "geometry": model.geometry.to_dict(),
        "reference_images": bundle.reference.count if bundle.reference is not None else None,
        "concepts": len(predictor.concepts) if predictor.concepts is not None else None,
        "has_card": predictor.card is not None,
        "int8": asdict(predictor.int8) if predictor.int8 is not None else None,
        "metrics": bundle.manifest["metrics"],
        "dataset": bundle.manifest["dataset"],
        "versions": bundle.manifest["versions"],
        "limits": {
            "max_body_bytes": settings.max_body_bytes,
            "max_pixels": settings.max_pixels,
            "max_top_k": settings.max_top_k,
            "max_pictures": settings.most_pictures,
            "max_forwards": settings.max_forwards,
            "max_jobs": settings.max_jobs,
            "deadline_ms": settings.deadline_ms,
        },
    }
