"""Conversion of the weights of others: ViTs, the releases, PaddleDetection."""
