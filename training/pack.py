"""Pack a dataset for streaming: `python -m training.pack coco:labels.json?images=train2017 --out DIR`.

Writes webdataset tars of people with the part of their image that training needs (see `deformer_core.data.packed`).
A run that was stopped goes on after its last whole tar. The folder may then be copied to an object store.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deformer_core.body.assets import load_body
from deformer_core.data.packed import SHARD_SIZE, pack
from deformer_core.data.readers import READERS, open_dataset
from deformer_core.errors import InputError
from deformer_core.training.progress import progress


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help=f"reader:path?option=value; readers: {', '.join(READERS)}")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tars")
    parser.add_argument("--body", default="anny", help="name or path for load_body (default: %(default)s)")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="people a tar (default: %(default)s)")
    room = "side of the pictures in sides of the people (default: %(default)s); 1 for rendered crops"
    parser.add_argument("--room", type=float, default=2.0, help=room)
    parser.add_argument("--size", type=int, default=512, help="pixels of a picture at most (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="that cut and encode (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except InputError as error:
        print(f"pack: {error}", file=sys.stderr)
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    topology = load_body(options.body)
    people = open_dataset(options.dataset, topology)
    identity = {"dataset": options.dataset}
    shape = (options.shard_size, options.room, options.size, options.threads)
    with progress(0, len(people), "people") as bar:
        for count in pack(people, options.out, topology, identity, *shape):
            bar.update(count)


if __name__ == "__main__":
    sys.exit(main())
