"""Conversion of the checkpoints of others: ViT and DeiT, PaddleDetection."""
