"""Both detectors as a whole, on the inputs that users have."""

import socket
import subprocess
import sys

import onnxruntime
import pytest
import torch
import torch.distributed as dist

# v2 has another assigner in each of the two epochs.
PHASES = [('v1', 0), ('v2', 0), ('v2', 100)]


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


# Sizes (H, W) of the images, and how many boxes each has.
CASES = {
    'rectangular': ([(64, 160), (128, 96)], [3, 2]),
    'no multiple of 32': ([(97, 65), (33, 131)], [3, 2]),
    'batch of one': ([(96, 96)], [4]),
    'one image without boxes': ([(64, 64), (64, 64)], [0, 5]),
    'no boxes at all': ([(64, 64), (64, 64)], [0, 0]),
    'crowds': ([(128, 128), (96, 128)], [300, 1]),
}


@pytest.mark.smoke
@pytest.mark.parametrize(('version', 'epoch'), PHASES)
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('num_classes', [1, 3])
def test_training_and_prediction(
    case, num_classes, version, epoch, detector, batch, runner_says
):
    runner_says(epoch)
    sizes, counts = CASES[case]
    model = detector(version, num_classes).train()
    data = batch(sizes, counts, num_classes)
    losses = train_step(model, data)
    assert (losses['loss_bbox'] > 0) == any(counts)
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


@pytest.mark.parametrize(('version', 'epoch'), PHASES)
def test_boxes_on_the_border_and_without_width(
    version, epoch, detector, batch, runner_says
):
    runner_says(epoch)
    boxes = torch.tensor(
        [
            [0.0, 0, 96, 96],
            [0, 0, 1, 96],
            [95, 95, 96, 96],
            [40, 0, 40, 20],
        ]
    )
    train_step(detector(version).train(), batch([(96, 96)], [boxes]))


@pytest.mark.parametrize('version', ['v1', 'v2'])
def test_unpadded_odd_sizes_train(version, detector, batch):
    data = batch([(97, 65)] * 2, [4, 4])
    train_step(detector(version, size_divisor=1).train(), data)


@pytest.mark.parametrize(('version', 'epoch'), PHASES)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_gives_the_losses_of_float32(
    dtype, version, epoch, detector, batch, runner_says
):
    runner_says(epoch)
    model = detector(version).train()
    data = batch([(96, 128)] * 2, [5, 0])
    reference = losses_of(model, data)
    with torch.autocast('cpu', dtype=dtype):
        losses = train_step(model, data)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, reference[name], rtol=0.1, atol=0.02)


class Network(torch.nn.Module):
    """The outputs of all levels as one flat tuple, as exporters want it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        cls_scores, bbox_preds = self.model(x, mode='tensor')
        return (*cls_scores, *bbox_preds)


@pytest.mark.parametrize(
    ('version', 'exporter', 'rtol'),
    [
        ('v1', dict(dynamo=True, verbose=False), 1.3e-6),
        ('v2', dict(dynamo=False, opset_version=17), 1e-4),
    ],
    ids=['v1', 'v2'],
)
def test_onnxruntime_computes_the_same(
    version, exporter, rtol, detector, tmp_path
):
    network = Network(detector(version)).eval()
    x = torch.rand(2, 3, 97, 65)
    path = tmp_path / 'network.onnx'
    torch.onnx.export(network, (x,), path, **exporter)
    session = onnxruntime.InferenceSession(path)
    outs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        for out, reference in zip(outs, network(x), strict=True):
            torch.testing.assert_close(
                torch.from_numpy(out), reference, rtol=rtol, atol=1e-5
            )


@pytest.mark.parametrize(('version', 'steps'), [('v1', 150), ('v2', 120)])
def test_learning_one_image_by_heart(
    version, steps, detector, batch, runner_says
):
    """With v2 first by ATSS, then by task alignment."""
    model = detector(version).train()
    model.init_weights()
    boxes = torch.tensor([[10.0, 12, 50, 60], [60, 30, 90, 90]])
    data = batch([(96, 96)], [boxes])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(steps):
        runner_says(100 * (step >= 60))
        optimizer.zero_grad()
        sum(losses_of(model, data).values()).backward()
        optimizer.step()
    found = model.eval().test_step(data)[0].pred_instances[:2]
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 1]
    assert (found.bboxes[order] - boxes).abs().max() < 6
    assert (found.scores > 0.3).all()


def test_the_network_compiles_for_changing_sizes(detector):
    model = detector('v1').eval()
    compiled = torch.compile(model, backend='aot_eager')
    for size in ((64, 64), (96, 160)):
        x = torch.rand(2, 3, *size)
        torch.testing.assert_close(
            compiled(x, mode='tensor'), model(x, mode='tensor')
        )


def one_rank(port, folder, rank):
    """Rank 1 sees no box at all; both must reach the same gradients."""
    # In a process of its own the folder of this file is searched first.
    from conftest import build_detector, make_batch

    dist.init_process_group(
        'gloo', f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    torch.manual_seed(0)
    model = build_detector('v1').train()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(rank)
    data = make_batch([(64, 64)] * 2, [4 * (rank == 0)] * 2)
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
