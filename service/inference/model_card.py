"""What a service says of itself."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from models.attribution.registry import METHODS
from service.inference.predictor import Engine


def describe_model(engine: Engine) -> dict[str, Any]:
    """Classes, geometry, blocks, methods, metrics, limits and provenance, as JSON has them."""
    known, model, settings = engine.bundle, engine.model, engine.settings
    return {
        **engine.origin().model_dump(),
        "classes": model.classes,
        "scoring": asdict(model.scoring),
        "blocks": list(model.block_names),
        "cam_block": model.cam_block,
        "default_method": engine.default_method,
        "methods": [name for name in METHODS if name not in engine.barred],
        "barred_methods": engine.barred,
        "method_notes": {
            row.name: {
                "title": row.title,
                "good_for": row.good_for,
                "misleads": row.misleads,
                "reads_block": row.reads_block,
            }
            for row in METHODS.values()
        },
        "sanity": known.sanity.to_dict() if known.sanity is not None else None,
        "geometry": model.geometry.to_dict(),
        "metrics": known.manifest["metrics"],
        "dataset": known.manifest["dataset"],
        "versions": known.manifest["versions"],
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
