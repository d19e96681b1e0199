"""Pictures of bodies: a software rasteriser, the overlay on the image, the view from the side."""
