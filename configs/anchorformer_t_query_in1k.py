"""Table 4, second row: anchors picked among the queries (figure 3a)."""

_base_ = './anchorformer_t_in1k.py'

model = dict(backbone=dict(attention='query'))
