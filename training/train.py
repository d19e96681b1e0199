"""Train a model: `python training/train.py --config training/configs/small.yaml [key=value ...]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from deformer_core.body.assets import load_body
from deformer_core.config import load_config
from deformer_core.errors import InputError
from deformer_core.nn.deformer import DeFormer
from deformer_core.training.engine import ENGINES, Engine, PlainEngine
from deformer_core.training.loop import CHECKPOINT, Trainer, load_state
from deformer_core.training.losses import DeFormerLoss
from deformer_core.training.processes import Processes, join_processes, leave_processes
from deformer_core.training.settings import TrainConfig, override, read_settings
from deformer_core.training.sources import Mixture, Shares
from deformer_core.training.task import TrainingTask, build_model, check_features, load_weights
from deformer_core.training.validation import Validation


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        trainer = prepare(options)
        trainer.run()
    except InputError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    leave_processes()
    if trainer.processes.rank == 0:
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
    processes = join_processes(config.device)
    topology = load_body(config.network.body)
    model = build_model(config, topology, pretrained=state is None)
    size = model.backbone.image_size if isinstance(model, DeFormer) else 256
    shares = Shares(processes.rank, processes.count, config.accumulation)
    mixture = Mixture(config, topology, size, shares)
    level = config.network.query_level if config.model == "deformer" else "coarse"
    loss = DeFormerLoss(config.loss, topology, mixture.prior(), level)
    if config.init and state is None:
        taken = load_weights(model, Path(config.init))
        if processes.rank == 0:
            print(taken)
    if state is None:
        check_features(config, model)
    task = TrainingTask(config, model, loss).to(processes.device)
    engine = build_engine(options.engine, task, config, processes)
    validation = Validation(config, topology, size)
    trainer = Trainer(config, mapping, task, engine, mixture, validation, processes, options.out)
    if state is not None:
        trainer.load(state)
    return trainer


def build_engine(name: str, task: TrainingTask, config: TrainConfig, processes: Processes) -> Engine:
    if name == "plain":
        return PlainEngine(task, config.optimizer, config.accumulation)
    from deformer_core.training.deepspeed_engine import DeepSpeedEngine

    people = config.batch_size // (processes.count * config.accumulation)
    return DeepSpeedEngine(task, config.optimizer, people, config.accumulation, config.deepspeed)


if __name__ == "__main__":
    sys.exit(main())
