"""Rendered people with exact labels: bodies, clothes, lights, cameras and photos' flaws, all from one seed."""
