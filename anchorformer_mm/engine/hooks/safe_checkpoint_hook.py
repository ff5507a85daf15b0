"""Checkpoints of which the old go after the new are whole."""

import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

from anchorformer_mm.engine.resuming.resume_point import (
    INTERRUPTED,
    LAST_CHECKPOINT,
)
from anchorformer_mm.registry import HOOKS
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

_OUTDATED = 'outdated_ckpts'
_MIB = 2**20


class _LateRemoval:
    """A file backend that notes down what it is to remove."""

    def __init__(self, backend) -> None:
        self.backend = backend
        self.outdated: list[str] = []

    def remove(self, path: str) -> None:
        self.outdated.append(str(path))

    rmtree = remove

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` that is never left with less than it had.

    ``max_keep_ckpts`` and ``save_best`` remove old files once the new one is
    whole, ``last_checkpoint`` is replaced in one step, and the space on the
    disk is looked at before anything is written. Arguments are those of
    :class:`mmengine.hooks.CheckpointHook`.
    """

    def before_train(self, runner: Runner) -> None:
        """Take up the state of a resumed run, and finish its removals."""
        super().before_train(runner)
        self.file_backend = _LateRemoval(self.file_backend)
        # As in the unbroken run, where there is one by now.
        self.last_ckpt = runner.message_hub.get_info('last_ckpt')
        self._saved: tuple[int, int, str] | None = None
        loaded = Path(runner._load_from or '')
        if runner.iter and loaded.parent == Path(self.out_dir):
            self._saved = (runner.epoch, runner.iter, str(loaded))
        outdated = runner.message_hub.get_info(_OUTDATED) or []
        self.file_backend.outdated = [
            self._beside(path) for path in outdated if Path(path).name
        ]
        self._remove_outdated()

    def save_interrupted(self, runner: Runner, meta: dict) -> str:
        """Write ``interrupted.pth``, which the next checkpoint replaces.

        Unless there is a checkpoint of this very moment.

        Args:
            runner: In training or evaluation.
            meta: As for ``Runner.save_checkpoint``.

        Returns:
            str: Path of the checkpoint.
        """
        if self._saved and self._saved[:2] == (meta['epoch'], meta['iter']):
            return self._saved[2]
        self._save(runner, INTERRUPTED, meta, self.args)
        path = self.file_backend.join_path(self.out_dir, INTERRUPTED)
        self._name_last(runner, path)
        return path

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse a checkpoint that the disk has no room for.

        Raises:
            UsageError: Free is less than the checkpoint's arrays and 1 MiB.
        """
        folder = Path(self.out_dir)
        if '://' in str(self.out_dir) or not folder.is_dir():
            return
        needed, free = _bytes_of(checkpoint) + _MIB, _free_bytes(folder)
        if free < needed:
            raise UsageError(
                f'no space for a checkpoint in {folder}: it needs '
                f'{needed / _MIB:,.0f} MiB, and {free / _MIB:,.0f} MiB are '
                'free; make room, and go on with the same command and '
                '--resume'
            )

    def _save_checkpoint_with_step(
        self, runner: Runner, step: int, meta: dict
    ) -> None:
        """Save as mmengine does, and remove what is outdated after that."""
        hub = runner.message_hub
        ids = getattr(self, 'keep_ckpt_ids', None)
        if ids is not None and (not ids or ids[-1] != step):
            if len(ids) == self.max_keep_ckpts:
                old = self.filename_tmpl.format(ids.popleft())
                self.file_backend.remove(
                    self.file_backend.join_path(self.out_dir, old)
                )
            ids.append(step)
            hub.update_info('keep_ckpt_ids', list(ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', self.last_ckpt)
        # For the run that is killed before it has removed them.
        hub.update_info(_OUTDATED, list(self.file_backend.outdated))
        self._save(runner, name, meta, self.args)
        self._name_last(runner, self.last_ckpt)
        self._saved = (meta['epoch'], meta['iter'], self.last_ckpt)
        self.file_backend.outdated.append(
            self.file_backend.join_path(self.out_dir, INTERRUPTED)
        )
        self._remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        # The best may be all there is to save.
        self._remove_outdated()

    def _save(self, runner: Runner, name: str, meta: dict, more: dict) -> None:
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **more,
        )

    def _name_last(self, runner: Runner, path: str) -> None:
        if is_main_process():
            with replacing(Path(runner.work_dir) / LAST_CHECKPOINT) as file:
                file.write_text(str(path))

    def _remove_outdated(self) -> None:
        late = self.file_backend
        best = getattr(self, 'best_ckpt_path_dict', {}).values()
        kept = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
        outdated, late.outdated = late.outdated, []
        if not is_main_process():
            return
        for path in outdated:
            if path in kept:
                continue
            if late.backend.isfile(path):
                late.backend.remove(path)
            elif late.backend.isdir(path):
                # As deepspeed saves them.
                late.backend.rmtree(path)

    def _beside(self, path: str) -> str:
        """Where that file is now; the work folder may have been moved."""
        return self.file_backend.join_path(self.out_dir, Path(path).name)


def _bytes_of(value: Any) -> int:
    """Count the bytes of the arrays in a checkpoint, each once."""
    seen: dict[Any, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        elif isinstance(value, HistoryBuffer):
            for array in value.data:
                seen[id(array)] = array.nbytes
        elif isinstance(value, dict):
            for item in value.values():
                visit(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                visit(item)

    visit(value)
    return sum(seen.values())


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
