"""DeFormer: 3D human mesh recovery from one RGB image (deformable mesh transformer, CVPR 2023)."""

__version__ = "0.1.0"
