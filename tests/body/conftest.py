"""A made-up body in the files of SMPL."""

import shutil
from pathlib import Path

import pytest
from made_smpl import MadeSmpl, make_smpl

from deformer_core.body.smpl import build_smpl
from deformer_core.body.smpl_files import SmplFiles, read_smpl
from deformer_core.body.topology import BodyTopology


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MadeSmpl]:
    folder = tmp_path_factory.mktemp("smpl")
    return folder, make_smpl(folder)


@pytest.fixture(scope="session")
def smpl(files: tuple[Path, MadeSmpl]) -> BodyTopology:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEFORMER_SMPL", str(files[0]))
        return build_smpl("smpl", read_smpl(SmplFiles.find("smpl")))


@pytest.fixture
def made(files: tuple[Path, MadeSmpl]) -> MadeSmpl:
    return files[1]


@pytest.fixture
def folder(files: tuple[Path, MadeSmpl], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to break, as $DEFORMER_SMPL, with a cache of its own."""
    copy = tmp_path / "smpl"
    shutil.copytree(files[0], copy)
    monkeypatch.setenv("DEFORMER_SMPL", str(copy))
    monkeypatch.setenv("DEFORMER_CACHE", str(tmp_path / "cache"))
    return copy
