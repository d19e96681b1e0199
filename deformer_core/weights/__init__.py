"""Weight files that travel with the package."""

from pathlib import Path

from deformer_core.errors import InputError


def weight_path(name: str) -> Path:
    """Path of a shipped weight file such as `movenet_thunder.safetensors`.

    Raises:
        InputError: the file is not in this installation.
    """
    path = Path(__file__).parent / name
    if not path.is_file():
        raise InputError(f"weight file {name} is missing from {path.parent}: reinstall the package")
    return path
