"""What is PicoDet v2's alone; the rest stands in ``test_picodet.py``."""

import torch
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from torch.utils.data import DataLoader


@torch.no_grad()
def test_the_network_compiles(detector):
    model = detector('v2').eval()
    compiled = torch.compile(model, backend='aot_eager', dynamic=False)
    x = torch.rand(2, 3, 96, 65)
    torch.testing.assert_close(
        compiled(x, mode='tensor'), model(x, mode='tensor')
    )


def train(model, data, work_dir, epochs, **cfg):
    """Train for so many epochs in all; which assigner each of them had."""
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


def test_the_assigner_changes_at_its_epoch_also_after_a_resume(
    detector, batch, tmp_path
):
    def run(folder, epochs, **cfg):
        model = detector('v2', initial_epoch=2)
        data = batch([(96, 96)], [2])
        return train(model, data, tmp_path / folder, epochs, **cfg)

    static, aligned = {'PicoATSSAssigner'}, {'PicoTaskAlignedAssigner'}
    assert run('whole', 4) == {0: static, 1: static, 2: aligned, 3: aligned}
    # One epoch, and the others by a process that knows nothing of it; and
    # again from behind the change.
    assert run('parts', 1) == {0: static}
    MessageHub._instance_dict.clear()
    assert run('parts', 3, resume=True) == {1: static, 2: aligned}
    MessageHub._instance_dict.clear()
    assert run('parts', 4, resume=True) == {3: aligned}
