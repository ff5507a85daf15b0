"""ClusTR of five blocks, for digits, as a backbone for any head.

The maps of a digit of 48 px have 144 tokens and fewer, so that the ratios are
half of ImageNet's.
"""

clustr_digits = dict(
    type='anchorformer_mm.ClusTR',
    arch=dict(
        embed_dims=(32, 64, 96, 96),
        num_heads=(1, 2, 3, 3),
        num_layers=(1, 1, 2, 1),
        mlp_ratios=(2, 2, 2, 2),
    ),
    sr_ratios=(4, 2, 1, 1),
)
