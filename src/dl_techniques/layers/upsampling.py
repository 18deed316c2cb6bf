"""Bilinear upsampling by two for sizes that may be unknown when the graph is built."""

from __future__ import annotations

from keras import ops


def upsample_bilinear_2x(x):
    """Double height and width by bilinear interpolation between pixel centres, edges repeated.

    Output pixel 2i is `¼ x[i−1] + ¾ x[i]`, pixel 2i+1 is `¾ x[i] + ¼ x[i+1]`: the same values as a bilinear resize
    with half-pixel centres, computed by slices and sums, which every backend and export supports at unknown sizes.

    Args:
        x: `(batch, height, width, channels)`.

    Returns:
        `(batch, 2·height, 2·width, channels)`.
    """
    batch, height, width, channels = ops.shape(x)
    near, far = 0.75 * x, 0.25 * x
    above = ops.concatenate([far[:, :1], far[:, :-1]], axis=1)
    below = ops.concatenate([far[:, 1:], far[:, -1:]], axis=1)
    # Rows 2i and 2i+1 side by side along the width, then as rows.
    rows = ops.concatenate([near + above, near + below], axis=2)  # (batch, height, 2 width, channels)
    x = ops.reshape(rows, (batch, 2 * height, width, channels))

    near, far = 0.75 * x, 0.25 * x
    left = ops.concatenate([far[:, :, :1], far[:, :, :-1]], axis=2)
    right = ops.concatenate([far[:, :, 1:], far[:, :, -1:]], axis=2)
    # Columns 2j and 2j+1 side by side along the channels, then as columns.
    columns = ops.concatenate([near + left, near + right], axis=3)  # (batch, 2 height, width, 2 channels)
    return ops.reshape(columns, (batch, 2 * height, 2 * width, channels))
