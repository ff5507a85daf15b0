"""PicoDet v2 as a whole, on the inputs that users have."""

import io

import numpy as np
import onnxruntime
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader

from anchorformer_mm.registry import MODELS


@pytest.fixture(autouse=True)
def runner_says():
    """Tell the epoch, as mmengine's runner does."""
    MessageHub._instance_dict.clear()
    yield lambda epoch: MessageHub.get_instance('training').update_info(
        'epoch', epoch
    )
    MessageHub._instance_dict.clear()


def detector(num_classes=3, size_divisor=32, initial_epoch=100):
    return MODELS.build(
        dict(
            type='anchorformer_mm.PicoDet',
            data_preprocessor=dict(
                type='mmdet.DetDataPreprocessor',
                mean=[127.5] * 3,
                std=[127.5] * 3,
                pad_size_divisor=size_divisor,
            ),
            backbone=dict(type='anchorformer_mm.LCNet', arch='0.1x'),
            neck=dict(
                type='anchorformer_mm.LCPAN',
                in_channels=[16, 24, 48],
                out_channels=16,
            ),
            bbox_head=dict(
                type='anchorformer_mm.PicoHeadV2',
                num_classes=num_classes,
                in_channels=16,
                feat_channels=16,
                stacked_convs=1,
            ),
            train_cfg=dict(
                initial_epoch=initial_epoch,
                initial_assigner=dict(type='anchorformer_mm.PicoATSSAssigner'),
                assigner=dict(type='anchorformer_mm.PicoTaskAlignedAssigner'),
            ),
        )
    )


def random_boxes(count, height, width):
    corners = torch.rand(count, 2, 2)
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
@pytest.mark.parametrize('epoch', [0, 100])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('num_classes', [1, 3])
def test_training_and_prediction(case, num_classes, epoch, runner_says):
    runner_says(epoch)
    sizes, counts = CASES[case]
    boxes = [
        random_boxes(n, *size) for n, size in zip(counts, sizes, strict=True)
    ]
    model = detector(num_classes).train()
    data = batch(sizes, boxes, num_classes)
    losses = train_step(model, data)
    if not any(counts):
        assert losses['loss_bbox'] == losses['loss_dfl'] == 0
    model.eval()
    results = model.test_step(data)
    for result, (height, width) in zip(results, sizes, strict=True):
        found = result.pred_instances
        assert len(found) <= 100
        limit = torch.tensor([width, height, width, height])
        assert ((found.bboxes >= 0) & (found.bboxes <= limit)).all()
        assert ((found.labels >= 0) & (found.labels < num_classes)).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


@pytest.mark.parametrize('epoch', [0, 100])
def test_boxes_on_the_border_and_without_width(epoch, runner_says):
    runner_says(epoch)
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


@pytest.mark.parametrize('epoch', [0, 100])
def test_autocast_gives_the_losses_of_float32(epoch, runner_says):
    runner_says(epoch)
    model = detector().train()
    data = batch([(96, 128)] * 2, [random_boxes(5, 96, 128), NONE])
    reference = losses_of(model, data)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = train_step(model, data)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, reference[name], rtol=0.1, atol=0.02)


@torch.no_grad()
def test_the_network_compiles():
    model = detector().eval()
    compiled = torch.compile(model, backend='aot_eager', dynamic=False)
    x = torch.rand(2, 3, 96, 65)
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


def test_onnxruntime_computes_the_same():
    network = Network(detector()).eval()
    x = torch.rand(2, 3, 97, 65)
    file = io.BytesIO()
    torch.onnx.export(network, (x,), file, dynamo=False, opset_version=17)
    session = onnxruntime.InferenceSession(file.getvalue())
    outs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        for out, reference in zip(outs, network(x), strict=True):
            np.testing.assert_allclose(out, reference, rtol=1e-4, atol=1e-5)


def test_learning_one_image_by_heart(runner_says):
    """First by ATSS, then by task alignment."""
    model = detector().train()
    model.init_weights()
    boxes = torch.tensor([[10.0, 12, 50, 60], [60, 30, 90, 90]])
    data = batch([(96, 96)], [boxes])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(120):
        runner_says(100 * (step >= 60))
        optimizer.zero_grad()
        sum(losses_of(model, data).values()).backward()
        optimizer.step()
    found = model.eval().test_step(data)[0].pred_instances[:2]
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 1]
    assert (found.bboxes[order] - boxes).abs().max() < 6
    assert (found.scores > 0.3).all()


def run(work_dir, epochs, **cfg):
    """Train for so many epochs in all; which assigner each of them had."""
    model = detector(initial_epoch=2)
    used = {}
    head = model.bbox_head

    def record(assigner):
        assign = assigner.assign_batch

        def recorded(*args):
            used.setdefault(runner.epoch, set()).add(type(assigner).__name__)
            return assign(*args)

        assigner.assign_batch = recorded

    record(head.initial_assigner)
    record(head.assigner)
    data = batch([(96, 96)], [random_boxes(2, 96, 96)])
    runner = Runner(
        model,
        work_dir=str(work_dir),
        train_dataloader=DataLoader([data] * 2, collate_fn=lambda x: x[0]),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        default_hooks=dict(logger=None),
        **cfg,
    )
    runner.train()
    return used


def test_the_assigner_changes_at_its_epoch_also_after_a_resume(tmp_path):
    static, aligned = {'PicoATSSAssigner'}, {'PicoTaskAlignedAssigner'}
    assert run(tmp_path / 'whole', 4) == {
        0: static,
        1: static,
        2: aligned,
        3: aligned,
    }
    # One epoch, and the others by a process that knows nothing of it; and
    # again from behind the change.
    assert run(tmp_path / 'parts', 1) == {0: static}
    MessageHub._instance_dict.clear()
    assert run(tmp_path / 'parts', 3, resume=True) == {1: static, 2: aligned}
    MessageHub._instance_dict.clear()
    assert run(tmp_path / 'parts', 4, resume=True) == {3: aligned}
