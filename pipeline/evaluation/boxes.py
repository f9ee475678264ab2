"""Images in little: means over boxes of pixels. It is the one definition; thumbnails and pixel metrics both use it."""

import numpy as np


def box_means(pixels: np.ndarray, side: int) -> np.ndarray:
    """Images (n, H, W, C) uint8 to means over square boxes, at most `side` of them per side: (n, h, w, C) float64.

    Boxes are as small as that allows and do not overlap. Rows and columns at the end that do not fill a box are left
    out. The means are exact sums divided once, so they do not depend on how a set is cut into calls.
    """
    n, height, width, channels = pixels.shape
    box = -(-max(height, width) // side)
    if box == 1:
        return pixels.astype(np.float64)
    h, w = height // box, width // box
    return pixels[:, : h * box, : w * box].reshape(n, h, box, w, box, channels).mean(axis=(2, 4))
