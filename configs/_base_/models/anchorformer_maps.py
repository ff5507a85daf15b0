"""AnchorFormer S with a map from each of four layers, for segmentors."""

anchorformer_maps = dict(
    type='anchorformer_mm.AnchorFormer',
    arch='small',
    img_size=512,
    num_anchors=30,
    out_type='featmap',
    out_indices=(2, 5, 8, 11),
    drop_path_rate=0.1,
)
