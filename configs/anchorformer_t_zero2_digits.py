"""Single digits with DeepSpeed's ZeRO 2: an example, as they fit anywhere."""

_base_ = ['./anchorformer_t_digits.py', './_base_/runners/deepspeed_zero2.py']
