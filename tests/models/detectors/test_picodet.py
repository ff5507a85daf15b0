"""The whole detector on the inputs that users have."""

import socket
import subprocess
import sys

import onnxruntime
import pytest
import torch
import torch.distributed as dist
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from anchorformer_mm.registry import MODELS

SMALL = dict(widths=(16, 32, 64), ratios=((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)))


def detector(num_classes=3, size_divisor=32):
    return MODELS.build(
        dict(
            type='anchorformer_mm.PicoDet',
            data_preprocessor=dict(
                type='mmdet.DetDataPreprocessor',
                mean=[127.5] * 3,
                std=[127.5] * 3,
                pad_size_divisor=size_divisor,
            ),
            backbone=dict(type='anchorformer_mm.AnchorESNet', arch=SMALL),
            neck=dict(
                type='anchorformer_mm.CSPPAN',
                in_channels=[16, 32, 64],
                out_channels=16,
            ),
            bbox_head=dict(
                type='anchorformer_mm.PicoHead',
                num_classes=num_classes,
                in_channels=16,
                feat_channels=16,
                stacked_convs=1,
            ),
        )
    )


def random_boxes(count, height, width, generator=None):
    corners = torch.rand(count, 2, 2, generator=generator)
    corners = corners.sort(dim=1).values * torch.tensor([width, height])
    boxes = corners.flatten(1).float()
    boxes[:, 2:] += 1
    return boxes


def batch(sizes, boxes, num_classes=3):
    """What a data loader gives: images (3, H, W) uint8 and their samples."""
    inputs, samples = [], []
    for (height, width), gt in zip(sizes, boxes, strict=True):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        labels = torch.arange(len(gt)) % num_classes
        sample.gt_instances = InstanceData(bboxes=gt, labels=labels)
        samples.append(sample)
        inputs.append(
            torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        )
    return dict(inputs=inputs, data_samples=samples)


def losses_of(model, data):
    data = model.data_preprocessor(data, training=True)
    losses = model(**data, mode='loss')
    assert set(losses) == {'loss_cls', 'loss_bbox', 'loss_dfl'}
    return losses


def train_step(model, data):
    """Losses and gradients; every parameter must have a finite one."""
    losses = losses_of(model, data)
    total = sum(losses.values())
    assert total.isfinite()
    total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
    return losses


NONE = torch.zeros(0, 4)
CASES = {
    'rectangular': ([(64, 160), (128, 96)], [3, 2]),
    'no multiple of 32': ([(97, 65), (33, 131)], [3, 2]),
    'batch of one': ([(96, 96)], [4]),
    'one image without boxes': ([(64, 64), (64, 64)], [0, 5]),
    'no boxes at all': ([(64, 64), (64, 64)], [0, 0]),
    'crowds': ([(128, 128), (96, 128)], [300, 1]),
}


@pytest.mark.smoke
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('num_classes', [1, 3])
def test_training_and_prediction(case, num_classes):
    sizes, counts = CASES[case]
    boxes = [
        random_boxes(n, *size) for n, size in zip(counts, sizes, strict=True)
    ]
    model = detector(num_classes).train()
    data = batch(sizes, boxes, num_classes)
    losses = train_step(model, data)
    assert (losses['loss_bbox'] > 0) == any(counts)
    model.eval()
    results = model.test_step(data)
    for result, (height, width) in zip(results, sizes, strict=True):
        found = result.pred_instances
        assert len(found) <= 100
        limit = torch.tensor([width, height, width, height])
        assert ((found.bboxes >= 0) & (found.bboxes <= limit)).all()
        assert ((found.labels >= 0) & (found.labels < num_classes)).all()


def test_boxes_on_the_border_and_without_width():
    boxes = torch.tensor(
        [
            [0.0, 0, 96, 96],
            [0, 0, 1, 96],
            [95, 95, 96, 96],
            [40, 0, 40, 20],
        ]
    )
    train_step(detector().train(), batch([(96, 96)], [boxes]))


def test_unpadded_odd_sizes_train():
    data = batch([(97, 65)] * 2, [random_boxes(4, 97, 65)] * 2)
    train_step(detector(size_divisor=1).train(), data)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_gives_the_losses_of_float32(dtype):
    model = detector().train()
    data = batch([(96, 128)] * 2, [random_boxes(5, 96, 128), NONE])
    reference = losses_of(model, data)
    with torch.autocast('cpu', dtype=dtype):
        losses = train_step(model, data)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, reference[name], rtol=0.1, atol=0.02)


def test_the_network_compiles():
    model = detector().eval()
    compiled = torch.compile(model, backend='aot_eager')
    for size in ((64, 64), (96, 160)):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(
            compiled(x, mode='tensor'), model(x, mode='tensor')
        )


class Network(torch.nn.Module):
    """The outputs of all levels as one flat tuple, as exporters want it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        cls_scores, bbox_preds = self.model(x, mode='tensor')
        return (*cls_scores, *bbox_preds)


def test_onnxruntime_computes_the_same(tmp_path):
    network = Network(detector().eval())
    x = torch.rand(2, 3, 97, 65)
    path = tmp_path / 'network.onnx'
    torch.onnx.export(network, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    outs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        for out, reference in zip(outs, network(x), strict=True):
            torch.testing.assert_close(torch.from_numpy(out), reference)


def test_learning_one_image_by_heart():
    model = detector().train()
    model.init_weights()
    boxes = torch.tensor([[10.0, 12, 50, 60], [60, 30, 90, 90]])
    data = batch([(96, 96)], [boxes])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        sum(losses_of(model, data).values()).backward()
        optimizer.step()
    found = model.eval().test_step(data)[0].pred_instances[:2]
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 1]
    assert (found.bboxes[order] - boxes).abs().max() < 6
    assert (found.scores > 0.3).all()


def one_rank(port, folder, rank):
    """Rank 1 sees no box at all; both must reach the same gradients."""
    dist.init_process_group(
        'gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = detector().train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(rank)
    boxes = [random_boxes(4, 64, 64) if rank == 0 else NONE] * 2
    data = batch([(64, 64)] * 2, boxes)
    data = model.data_preprocessor(data, training=True)
    for _ in range(2):
        parallel.zero_grad()
        sum(parallel(**data, mode='loss').values()).backward()
    torch.save([p.grad for p in model.parameters()], f'{folder}/{rank}.pth')
    dist.destroy_process_group()


def test_two_processes_agree_though_one_has_no_boxes(tmp_path):
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    command = [sys.executable, __file__, str(port), str(tmp_path)]
    ranks = [subprocess.Popen([*command, rank]) for rank in '01']
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    grads = [
        torch.load(tmp_path / f'{rank}.pth', weights_only=True)
        for rank in (0, 1)
    ]
    for ours, theirs in zip(*grads, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()


if __name__ == '__main__':
    one_rank(sys.argv[1], sys.argv[2], int(sys.argv[3]))
