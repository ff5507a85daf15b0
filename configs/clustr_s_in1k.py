"""ClusTR S on ImageNet, in the recipe of its release.

22.69 M, 7.88 GMAC at 224 px with 1,000 classes.

That recipe is DeiT's, as mmpretrain has it for Twins, and repeated
augmentation. The release also asks for colour jitter, which its library
leaves out wherever there is RandAugment.
"""

_base_ = 'mmpretrain::twins/twins-pcpvt-small_8xb128_in1k.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='anchorformer_mm.ClusTR',
        arch='small',
        out_indices=(3,),
        drop_path_rate=0.1,
    ),
    # As all linear layers are, in place of the head's own.
    head=dict(init_cfg=None),
)

train_dataloader = dict(sampler=dict(type='RepeatAugSampler'))
optim_wrapper = dict(clip_grad=None)
