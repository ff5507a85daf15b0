"""Metrics with figures of every class."""

from mmseg.evaluation import IoUMetric

from anchorformer_mm.registry import METRICS


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmseg's ``IoUMetric`` that also logs ``IoU/<class>``, in percent.

    Arguments are those of :class:`mmseg.evaluation.IoUMetric`.
    """

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute metrics from areas of the images, as mmseg does."""
        metrics = super().compute_metrics(results)
        if self.format_only:
            return metrics
        areas = [sum(area) for area in zip(*results, strict=True)]
        values = self.total_area_to_metrics(
            *areas, self.metrics, self.nan_to_num, self.beta
        )
        names = self.dataset_meta['classes']
        ious = values.get('IoU', ())
        per_class = zip(names, ious, strict=False)
        return metrics | {f'IoU/{n}': 100 * float(v) for n, v in per_class}
