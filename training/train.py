"""Train a model: `python training/train.py --config training/configs/small.yaml [key=value ...]`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deformer_core.body.assets import load_body
from deformer_core.config import load_config
from deformer_core.errors import InputError
from deformer_core.training.engine import ENGINES, DeepSpeedEngine, Engine, PlainEngine
from deformer_core.training.loop import CHECKPOINT, Trainer, load_state
from deformer_core.training.losses import DeFormerLoss
from deformer_core.training.settings import TrainConfig, override, read_settings
from deformer_core.training.sources import Mixture
from deformer_core.training.task import TrainingTask, build_model, load_weights


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a lease that ends saves as Ctrl-C does
    try:
        trainer = prepare(options)
        trainer.run()
    except InputError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"done: {trainer.out}/model.safetensors, best {trainer.best}")
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, help="YAML file; with --resume the run's own configuration is used")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. steps=5000 optimizer.clip=0.5")
    parser.add_argument("--engine", choices=ENGINES, default="plain")
    parser.add_argument("--out", type=Path, default=Path("out/train"), help="folder of the run (default: out/train)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # given by DeepSpeed's launcher
    return parser.parse_intermixed_args(arguments)


def prepare(options: argparse.Namespace) -> Trainer:
    """Everything but the training itself. Errors: `InputError` for a bad configuration or folder."""
    state: dict[str, Any] | None = None
    path = options.out / CHECKPOINT
    if options.resume and path.is_file():
        state = load_state(path)
        mapping = override(state["config"], options.overrides)
        config = load_config(TrainConfig, mapping, f"{path} with overrides")
    elif options.config is None:
        raise InputError(f"give --config FILE (there is no {path} to resume from)")
    elif path.is_file():
        raise InputError(f"{options.out} holds a training run already: add --resume to go on, or give another --out")
    else:
        config, mapping = read_settings(options.config, options.overrides)

    if config.threads:
        torch.set_num_threads(config.threads)
    device = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    topology = load_body(config.network.body)
    mixture = Mixture(config, topology)
    level = config.network.query_level if config.model == "deformer" else "coarse"
    loss = DeFormerLoss(config.loss, topology, mixture.prior(), level)
    model = build_model(config, topology)
    if config.init and state is None:
        print(load_weights(model, Path(config.init)))
    task = TrainingTask(config, model, loss).to(device)
    trainer = Trainer(config, mapping, task, build_engine(options.engine, task, config), topology, mixture, options.out)
    torch.manual_seed(config.seed)
    if state is not None:
        trainer.load(state)
    return trainer


def build_engine(name: str, task: TrainingTask, config: TrainConfig) -> Engine:
    if name == "plain":
        return PlainEngine(task, config.optimizer)
    return DeepSpeedEngine(task, config.optimizer, config.batch_size, config.deepspeed)


if __name__ == "__main__":
    sys.exit(main())
