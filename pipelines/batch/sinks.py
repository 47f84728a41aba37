"""Where the results of a batch job go."""

from __future__ import annotations

import pyarrow as pa

ROW_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("digest", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("prediction", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("accepted", pa.list_(pa.string())),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
        pa.field("target", pa.string()),
        pa.field("against", pa.string()),
        pa.field("method", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("block", pa.string()),
        pa.field("grid_rows", pa.int32()),
        pa.field("grid_cols", pa.int32()),
        pa.field("grid", pa.list_(pa.float32())),
        pa.field("seen_box", pa.list_(pa.float64())),
        pa.field("full_scale", pa.float64()),
        pa.field("settings", pa.string()),
        pa.field("sanity", pa.string()),
        pa.field("border_mass", pa.float64()),
        pa.field("faithfulness", pa.float64()),
        pa.field("faithfulness_percentile", pa.float64()),
        pa.field("verdict", pa.string()),
        pa.field("agreement", pa.float64()),
        pa.field("shift_spread", pa.float64()),
        pa.field("shift_correlation", pa.float64()),
        pa.field("best_stage", pa.string()),
        pa.field("hottest_change", pa.float64()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("overlay", pa.string()),
        pa.field("model_digest", pa.string(), nullable=False),
    ]
)
"""One row a picture. ``grid`` holds the signed map row by row; ``status`` is an attribution's, or "error"."""
