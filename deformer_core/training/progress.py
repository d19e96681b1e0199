"""A progress bar where tqdm is installed, plain lines where it is not (a bare GPU machine)."""

from __future__ import annotations

from typing import Any


def progress(start: int, stop: int, unit: str) -> Any:
    """A context manager with `update(n=1)`, `write(text)` and `set_description(text)`."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _Lines()
    return tqdm(initial=start, total=stop, unit=f" {unit}", dynamic_ncols=True, mininterval=1.0)


class _Lines:
    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: int = 1) -> None:
        pass

    def set_description(self, text: str) -> None:
        self.write(text)

    def write(self, text: str) -> None:
        print(text, flush=True)
