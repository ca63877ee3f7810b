"""The formats' own validators, as their authors ship them."""

import json
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import pytest


def bids_errors(folder: Path) -> list[str]:
    """What the BIDS validator calls an error."""
    pytest.importorskip("bids_validator_deno")
    command = [Path(sys.executable).with_name("bids-validator-deno"), folder, "--format", "json"]
    told = subprocess.run(command, capture_output=True, timeout=300, check=False)
    found = json.loads(told.stdout)
    assert found["summary"]["totalFiles"] > 0
    return [f"{i['code']} {i.get('location')}" for i in found["issues"]["issues"] if i["severity"] == "error"]


def check_nnunet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run nnU-Net's own integrity check, which raises where it finds something."""
    module = pytest.importorskip("nnunetv2.experiment_planning.verify_dataset_integrity")
    # Its processes would each import torch again; threads run the same checks.
    context = SimpleNamespace(Pool=ThreadPool)
    monkeypatch.setattr(module.multiprocessing, "get_context", lambda kind: context)
    module.verify_dataset_integrity(str(folder), 1)
