import os
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread a worker under xdist, set before torch and numpy load: more would fight over the cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = "1"
    import torch

    torch.set_num_threads(1)

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real cohorts: MEDGEN_DATA, or beside the project; tests that need it are skipped without."""
    root = Path(os.environ.get("MEDGEN_DATA", _BESIDE))
    if not root.is_dir():
        pytest.skip("no real data: set MEDGEN_DATA to the folder that holds oasis/, hippocampus/ and ms/")
    return root


@pytest.fixture(scope="session")
def data_dir(data: Path) -> Callable[[str], Path]:
    """One real cohort by its folder's name, for example ``data_dir("oasis")``."""

    def folder(name: str) -> Path:
        if not (data / name).is_dir():
            pytest.skip(f"no real data: {name} is not in MEDGEN_DATA")
        return data / name

    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished tiny experiment; read it, do not write to it."""
    from medgen import config, pipeline
    from tests.tiny import TINY

    folder = tmp_path_factory.mktemp("run") / "tiny"
    pipeline.run_experiment(config.build(TINY, "the tiny experiment"), folder=folder)
    return folder
