"""Blend checkpoints of one network weight by weight: `python -m training.blend BEFORE AFTER --share 0.5 --out FILE`.

Between a network before and after fine-tuning lie networks that keep most of what either knows, often more than both on
what the fine-tuning did not show (WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022). Use
it after training the backbone on few photos and many renders; train what reads it once more afterwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from deformer_core.checkpoint import load_checkpoint, save_checkpoint
from deformer_core.errors import InputError
from deformer_core.nn.deformer import DeFormer


def blend(before: DeFormer, after: DeFormer, share: float) -> DeFormer:
    """`after`, changed in place to (1 - share) * before + share * after. Errors: `InputError`, not one network.

    A volume that `before` has not is `after`'s.
    """
    grown = replace(before.config, volume_width=before.config.volume_width or after.config.volume_width)
    if grown != after.config:
        raise InputError("the checkpoints are of different networks: give one network before and after fine-tuning")
    other = before.state_dict()
    after.load_state_dict(
        {
            name: other[name].lerp(value, share) if name in other and value.is_floating_point() else value
            for name, value in after.state_dict().items()
        }
    )
    return after


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="checkpoint or shipped name: share 0")
    parser.add_argument("after", help="checkpoint or shipped name: share 1")
    parser.add_argument("--share", type=float, default=0.5, help="of the second (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    options = parser.parse_args(arguments)
    try:
        model = blend(load_checkpoint(options.before), load_checkpoint(options.after), options.share)
        origin = {"before": Path(options.before).name, "after": Path(options.after).name, "share": options.share}
        save_checkpoint(options.out, model, {}, {"blend": origin})
    except InputError as error:
        print(f"blend: {error}", file=sys.stderr)
        return 2
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
