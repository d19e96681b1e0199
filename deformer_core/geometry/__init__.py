"""Rotations, cameras and alignment: functions of numpy arrays and torch tensors, nothing of bodies or networks."""
