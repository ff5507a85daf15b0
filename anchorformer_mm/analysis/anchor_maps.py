"""SHIM"""

from anchorformer_mm.analysis.layer_maps import (  # noqa: F401
    AnchorWeights,
    anchor_colours,
    choose_layers,
    collect_anchor_weights,
    draw_anchor_maps,
    draw_assignment,
)
