"""What we add to mmpretrain's classifiers; importing it needs mmpretrain."""

from anchorformer_mm.models.classifiers.distilled_classifier import (
    DistilledImageClassifier,
)

__all__ = ['DistilledImageClassifier']
