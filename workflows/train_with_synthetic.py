"""Train a segmenter on real and synthetic cases together; Dice on held-out real cases says what that is worth.

    python workflows/train_with_synthetic.py DATA/oasis --synthetic runs/oasis/synthetic --run runs/oasis --steps 2000
    python workflows/train_with_synthetic.py DATA/oasis --run runs/oasis --steps 2000      # the same without synthetic

Every epoch has each real case once and other synthetic ones: ``--ratio 2 --by age:10,sex`` joins
two to each real case, from the same decade and sex; ``--ratio balance`` fills the strata up instead.

With ``--run``, the folder of the experiment that made the synthetic cases, the test cases are those that experiment
held out. Any other split would test on patients whose likeness the synthetic cases may carry.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from monai.data import CacheDataset, DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNet
from monai.networks.utils import one_hot
from monai.transforms import (
    Compose,
    LoadImaged,
    MapLabelValued,
    NormalizeIntensityd,
    Orientationd,
    RandSpatialCropd,
    SelectItemsd,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism

import medgen
from medgen.store.prepared import Prepared

KEYS = ("image", "label")
Row = dict[str, Any]


def train_with_synthetic(
    real: Annotated[Path, typer.Argument(help="Folder of the real, labelled cohort.")],
    synthetic: Annotated[list[Path] | None, typer.Option(help="Synthetic dataset; may be given repeatedly.")] = None,
    ratio: Annotated[str, typer.Option(help="Synthetic cases an epoch for each real one, or `balance`.")] = "1",
    by: Annotated[str, typer.Option(help="Strata that the ratio holds in, such as age:10,sex.")] = "",
    run: Annotated[Path | None, typer.Option(help="Run folder whose held-out cases are the test cases.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Patches a step.")] = 2,
    patch: Annotated[int, typer.Option(min=8, help="Edge of a patch in voxels, rounded to multiples of 8.")] = 64,
    spacing: Annotated[float, typer.Option(min=0.1, help="Voxel size in mm to train and test at.")] = 2.0,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of AdamW.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of weights, patches and, without --run, the split.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Train a small UNet and print its Dice a label on held-out real cases."""
    cohort = medgen.read_cohort(real)
    names = cohort.label_names
    if not names:
        raise typer.BadParameter(f"{real} names no labels; add a dseg.tsv or a dataset.json")
    real_rows = [row for row in medgen.datalist(real) if "label" in row]  # medgen, line 1: any format it reads
    synthetic_rows = [row for folder in synthetic or () for row in medgen.datalist(folder)]  # medgen, line 2
    train, test = split(real_rows, run, seed)
    if not train or not test:
        raise typer.BadParameter(f"{real} leaves {len(train)} cases to train and {len(test)} to test; it needs both")
    print(f"{len(train)} real and {len(synthetic_rows)} synthetic cases to train, {len(test)} real cases to test")

    set_determinism(seed)
    size = (max(8, patch // 8 * 8),) * 3
    read = reading(sorted(names), spacing, size)
    crop = RandSpatialCropd(KEYS, roi_size=size, random_size=False)
    mix = mixing(ratio, by) if synthetic_rows else {"ratio": 0.0}
    cached = partial(CacheDataset, progress=False)
    # medgen, line 3: the real cases, and others of the synthetic ones in every epoch
    patches = medgen.MixedDataset(train, synthetic_rows, Compose([*read, crop]), **mix, dataset=cached, seed=seed)
    shape = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 1}
    net = UNet(3, len(cohort.channels), len(names) + 1, **shape).to(device)
    fit(net, DataLoader(patches, batch_size=batch, sampler=patches.sampler), steps, learning_rate, device)
    for name, score in zip((names[v] for v in sorted(names)), dice(net, test, read, size, device), strict=True):
        print(f"{name:24} Dice {score:.3f}")


def mixing(ratio: str, by: str) -> Row:
    """How synthetic cases are mixed in, as :class:`medgen.MixedDataset` takes it."""
    if ratio == "balance":
        return {"ratio": ratio, "by": by}
    try:
        return {"ratio": float(ratio), "by": by}
    except ValueError:
        raise typer.BadParameter(f"--ratio is a number or 'balance', not '{ratio}'") from None


def split(rows: list[Row], run: Path | None, seed: int) -> tuple[list[Row], list[Row]]:
    """Real cases to train and to test: a run's own split, else every fourth subject (in random order) tests."""
    if run is not None:
        if (run / "fold-1").is_dir():
            raise typer.BadParameter(f"{run} goes fold by fold, each with its own split; give {run}/fold-1 or another")
        held = {case.case_id for case in Prepared.open(run / "prepared").cases if case.split != "train"}
        return [r for r in rows if r["case_id"] not in held], [r for r in rows if r["case_id"] in held]
    subjects = sorted({r["subject_id"] for r in rows})
    order = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(seed)).tolist()
    tests = {subjects[i] for i in order[: max(1, len(subjects) // 4)]}
    return [r for r in rows if r["subject_id"] not in tests], [r for r in rows if r["subject_id"] in tests]


def reading(values: list[int], spacing_mm: float, size: tuple[int, int, int]) -> list[Any]:
    """From files to arrays: RAS+, one voxel size, labels 0, 1, 2, ..., mean 0 and deviation 1."""
    return [
        SelectItemsd(KEYS),  # real and synthetic rows have other columns beside, which no batch could join
        LoadImaged(KEYS, image_only=True, ensure_channel_first=True),
        Orientationd(KEYS, axcodes="RAS", labels=None),
        Spacingd(KEYS, pixdim=(spacing_mm,) * 3, mode=("bilinear", "nearest")),
        MapLabelValued("label", [0, *values], list(range(len(values) + 1))),
        NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        SpatialPadd(KEYS, spatial_size=size),
    ]


def fit(net: torch.nn.Module, loader: DataLoader, steps: int, learning_rate: float, device: str) -> None:
    """Dice and cross-entropy, AdamW, a cosine down to 0."""
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    optimiser = torch.optim.AdamW(net.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    step = 0
    while step < steps:
        for part in loader:
            loss = loss_of(net(part["image"].to(device)), part["label"].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            if step % 100 == 0 or step == steps:
                print(f"step {step}: loss {loss.item():.4f}")
            if step == steps:
                break


@torch.no_grad()
def dice(
    net: torch.nn.Module, rows: list[Row], read: list[Any], size: tuple[int, int, int], device: str
) -> list[float]:
    """Mean Dice of each label but the background over whole cases; cases without the label do not count."""
    net.eval()
    scores = []
    for case in CacheDataset(rows, Compose(read), progress=False):
        logits = sliding_window_inference(case["image"][None].to(device), size, 4, net, overlap=0.5)
        label = case["label"][None].to(device)
        found = one_hot(logits.argmax(dim=1, keepdim=True), logits.shape[1])
        scores.append(compute_dice(found, one_hot(label, logits.shape[1]), include_background=False)[0])
    return torch.stack(scores).nanmean(dim=0).tolist()


if __name__ == "__main__":
    typer.run(train_with_synthetic)
