"""AnchorFormer T on ImageNet with anchors that the paper does not have.

Untied and standardized, see docs/models.md. Nobody has trained it.
"""

_base_ = './anchorformer_t_in1k.py'

model = dict(
    backbone=dict(
        attn_cfg=dict(tied=False, logits='standardized', logit_scale=2.0)
    )
)

optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'logit_scale': dict(decay_mult=0.0)})
)
