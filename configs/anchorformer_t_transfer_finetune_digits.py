"""Attention transfer on digits, stage 2: 3 epochs on the teacher's logits."""

_base_ = './anchorformer_t_transfer_digits.py'

load_from = 'work_dirs/anchorformer_t_transfer_digits/epoch_3.pth'

model = dict(target='logits')
optim_wrapper = dict(optimizer=dict(lr=1e-3))
