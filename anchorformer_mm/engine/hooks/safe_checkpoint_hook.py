"""Checkpoints of which the old go after the new are whole."""

import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner import Runner

from anchorformer_mm.engine.resuming.resume_point import (
    INTERRUPTED,
    LAST_CHECKPOINT,
    checkpoint_pattern,
)
from anchorformer_mm.registry import HOOKS
from anchorformer_mm.utils.errors import UsageError
from anchorformer_mm.utils.files import replacing

_OUTDATED, _KEPT, _BEST = 'outdated_ckpts', 'keep_ckpt_ids', 'best_ckpt_'
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
        hub = runner.message_hub
        if _KEPT in hub.runtime_info:
            ids = [i for i in _list(hub, _KEPT) if type(i) is int]
            hub.update_info(_KEPT, ids)
        super().before_train(runner)
        self.file_backend = _LateRemoval(self.file_backend)
        self._adopt_names(hub)
        # As in the unbroken run, where there is one by now.
        self.last_ckpt = hub.get_info('last_ckpt')
        self._saved: tuple[int, int, str] | None = None
        loaded = Path(runner._load_from or '')
        if runner.iter and loaded.parent == Path(self.out_dir):
            self._saved = (runner.epoch, runner.iter, str(loaded))
        self._remove_outdated()

    def _adopt_names(self, hub: MessageHub) -> None:
        """Take from a checkpoint names of checkpoints in this folder alone.

        The files that it names are removed in the course of the training, and
        it may be a copy, or from somebody else.
        """
        pattern = checkpoint_pattern(self.filename_tmpl, best=True)

        def ours(path: Any) -> str | None:
            name = Path(path).name if isinstance(path, str) else ''
            if not pattern.fullmatch(name):
                return None
            return self.file_backend.join_path(self.out_dir, name)

        for key in list(hub.runtime_info):
            if key in ('last_ckpt', 'best_ckpt') or key.startswith(_BEST):
                hub.update_info(key, ours(hub.get_info(key)))
        self.file_backend.outdated = [
            path for path in map(ours, _list(hub, _OUTDATED)) if path
        ]
        if self.save_best is None:
            return
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = hub.get_info('best_ckpt')
            return
        for key in self.key_indicators:
            self.best_ckpt_path_dict[key] = hub.get_info(_BEST + key)

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
            hub.update_info(_KEPT, list(ids))
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


def _list(hub: MessageHub, key: str) -> list:
    value = hub.runtime_info.get(key)
    return list(value) if isinstance(value, (list, tuple)) else []


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
