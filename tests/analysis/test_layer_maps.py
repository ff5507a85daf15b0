import pytest
from torch import nn

from anchorformer_mm.analysis.layer_maps import maps_of
from anchorformer_mm.models.layers import (
    AnchorAttention,
    ClusterAttention,
    SelfAttention,
)
from anchorformer_mm.utils.errors import UsageError


def test_clusters_are_the_maps_of_models_without_anchors():
    vanilla, anchors, clusters = (
        kind(8, 2)
        for kind in (SelfAttention, AnchorAttention, ClusterAttention)
    )
    assert maps_of(nn.Sequential(vanilla, clusters)) == 'clusters'
    assert maps_of(nn.Sequential(vanilla, anchors)) == 'anchors'
    assert maps_of(nn.Sequential(clusters, anchors)) == 'anchors'
    with pytest.raises(UsageError, match='neither anchors nor clusters'):
        maps_of(nn.Sequential(vanilla, nn.ReLU()))
