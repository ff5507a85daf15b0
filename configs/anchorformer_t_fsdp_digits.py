"""Single digits with a model in shards: an example, as it fits anywhere."""

_base_ = ['./anchorformer_t_digits.py', './_base_/runners/fsdp.py']
