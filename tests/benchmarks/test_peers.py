import onnx
import peers
import torch
from torch import nn


class Queries(nn.Module):
    def forward(self, x):
        boxes = x.mean(dim=(2, 3))[:, None].tile(1, 1, 2)[..., :4]
        return dict(pred_boxes=boxes, pred_logits=boxes[..., :2])


def test_what_can_be_had_is_written(monkeypatch, tmp_path, capsys):
    found = {
        'none': ('no-such-package', 32, Queries),
        'broken': ('torch', 32, lambda: nn.Linear(1, 1)),
        'small': ('torch', 32, lambda: peers.DETR(Queries())),
    }
    monkeypatch.setattr(peers, 'PEERS', found)
    assert peers.main([str(tmp_path)]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ['small.onnx']
    graph = onnx.load(tmp_path / 'small.onnx').graph
    sizes = [
        [d.dim_value for d in port.type.tensor_type.shape.dim]
        for port in (*graph.input, *graph.output)
    ]
    assert sizes == [[1, 3, 32, 32], [1, 1, 4], [1, 1, 2]]
    none, broken = capsys.readouterr().err.splitlines()
    assert 'none left out, pip install no-such-package' in none
    assert broken.startswith('broken left out')


def test_queries_become_boxes_and_scores():
    boxes, scores = peers.DETR(Queries())(torch.full((1, 3, 8, 8), 127.5))
    assert boxes.tolist() == [[[2, 2, 6, 6]]]
    assert (scores > 0.5).all()
