"""Where the two people of the `photo` fixture stand."""

import numpy as np

INTRINSICS = np.array([[500.0, 0, 240], [0, 500, 180], [0, 0, 1]])
TRANSLATIONS = np.array([[-0.6, 0, 3.2], [0.7, 0, 3.6]], np.float32)
BOXES = np.array([[40, 47, 236, 330], [260, 63, 431, 314]], np.float32)
"""By hand."""
