"""From a full image to people: detector, engines, placement, pictures and files."""

from deformer_core.runtime.estimator import Estimator
from deformer_core.runtime.person import Person

__all__ = ["Estimator", "Person"]
