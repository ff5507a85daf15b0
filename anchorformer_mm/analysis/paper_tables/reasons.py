"""Why figures differ, where several rows have the same reason."""

CLASSIFIER = (
    'for 197 tokens, the patch embedding, MLPs, keys, values and output '
    'projections of 12 such layers alone take 0.99 G (T), 3.89 G (S) and '
    '15.45 G (B), and with the classifier they have 5.3, 20.3 and 79.5 M '
    'parameters, whatever the anchors. What of it the paper leaves out is '
    'not known'
)
DETECTOR = (
    'the paper gives neither widths nor what it counts; ours are those of '
    'PicoDet S, M, L. Neither MACs nor 2 x MACs, at 320, 416 or 640 px, give '
    'all three printed figures'
)
