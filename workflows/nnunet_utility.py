"""The primary question of `medgen utility` asked of nnU-Net v2: do synthetic pairs help it on held-out real cases?

    medgen utility configs/hippocampus.yaml --set data.root=$DATA/hippocampus
    python workflows/nnunet_utility.py runs/hippocampus --size 5 --dataset 701 --dry-run
    python workflows/nnunet_utility.py runs/hippocampus --size 5 --dataset 701

One raw dataset holds the labelled real cases of that size, the held-out ones and the synthetic pairs of the generator
that saw no other label. Its `splits_final.json` has a fold for each arm: fold 0 trains on real cases alone, fold 1 on
real and synthetic ones, half of each; both are validated on the same held-out real cases. So both arms have one plan,
one network and as many iterations. nnU-Net predicts the validation cases at the end of a training with its last
weights, which no validation has chosen, and `nnUNetv2_predict` can do the same for new cases. A finished fold is not
trained again, and one that was stopped goes on.
"""

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from medgen import read_cohort
from medgen.evaluation.utility.compare import two_way_bootstrap
from medgen.stages.utility_export import combine_size

ARMS = ("real", "real and synthetic")  # the folds 0 and 1
SPLITS = "splits_final.json"
DONE = "medgen_preprocessed"  # nnU-Net itself says nothing of a preprocessing that ended halfway


def commands(
    dataset: int, name: str, configuration: str, trainer: str, device: str, raw: Path, ready: Path, results: Path
) -> list[list[str]]:
    """What is run, in order; what is finished is left out, trainings begun go on."""
    found = []
    on = [] if device == "cuda" else ["-device", device]
    if not (ready / name / f"{DONE}_{configuration}").is_file():
        plan = ["nnUNetv2_plan_and_preprocess", "-d", str(dataset), "-c", configuration, "--verify_dataset_integrity"]
        found.append(plan)
    for fold in range(len(ARMS)):
        folder = fold_of(results, name, configuration, trainer, fold)
        if (folder / "validation" / "summary.json").is_file():
            continue
        go_on = ["--c"] if (folder / "checkpoint_latest.pth").is_file() else []
        found.append(["nnUNetv2_train", str(dataset), configuration, str(fold), "-tr", trainer, *on, *go_on])
    for fold, arm in enumerate(ARMS):
        said = ["-i", str(raw / name / "imagesTs"), "-o", str(results / name / f"predicted_{arm.replace(' ', '_')}")]
        if (raw / name / "imagesTs").is_dir():  # further cases of the user's own
            of = ["-d", str(dataset), "-c", configuration, "-tr", trainer, "-f", str(fold)]
            found.append(["nnUNetv2_predict", *said, *of, *on])
    return found


def fold_of(results: Path, name: str, configuration: str, trainer: str, fold: int) -> Path:
    """Where nnU-Net puts a fold."""
    return results / name / f"{trainer}__nnUNetPlans__{configuration}" / f"fold_{fold}"


def balanced(splits: list[dict[str, list[str]]], share: float) -> list[dict[str, list[str]]]:
    """Splits in which so large a share of what fold 1 trains on is synthetic, however many cases there are.

    nnU-Net draws its cases evenly from the list, so a real case that is listed k times is seen k times as often. Fewer
    synthetic than real cases stay as they are.
    """
    real, both = splits[0]["train"], splits[1]["train"]
    synthetic = sorted(set(both) - set(real))
    times = max(1, round(len(synthetic) * (1 - share) / share / len(real)))
    return [splits[0], {**splits[1], "train": [*sorted(real) * times, *synthetic]}]


def compare(folders: list[Path], subjects: dict[str, str]) -> str:
    """Mean Dice of both arms, and the paired difference with its 95% interval over held-out subjects.

    Args:
        folders: of nnU-Net's two folds.
        subjects: who a case is of, by its id; cases of one subject are drawn together.
    """
    tables = []
    for folder in folders:
        said = json.loads((folder / "validation" / "summary.json").read_text())["metric_per_case"]
        case_dice = {Path(c["reference_file"]).name: [m["Dice"] for m in c["metrics"].values()] for c in said}
        tables.append({name: float(np.nanmean(values)) for name, values in case_dice.items()})
    names = sorted(set(tables[0]) & set(tables[1]))
    real, both = (np.array([t[n] for n in names]) for t in tables)
    of = [subjects[name.removesuffix(".nii.gz")] for name in names]
    found = two_way_bootstrap((both - real)[None], of)
    return (
        f"{len(names)} held-out cases of {len(set(of))} subjects: "
        f"Dice {np.nanmean(real):.4f} ({ARMS[0]}), {np.nanmean(both):.4f} ({ARMS[1]}), "
        f"difference {found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
    )


def nnunet_utility(
    run: Annotated[Path, typer.Argument(help="Run folder in which `medgen utility` has finished.")],
    size: Annotated[str, typer.Option(help="One of utility.sizes.")] = "5",
    dataset: Annotated[int, typer.Option(min=1, max=999, help="nnU-Net's number for the dataset.")] = 701,
    configuration: Annotated[str, typer.Option(help="nnU-Net's configuration.")] = "3d_fullres",
    trainer: Annotated[str, typer.Option(help="nnU-Net's trainer, for example nnUNetTrainer_100epochs.")] = (
        "nnUNetTrainer"
    ),
    device: Annotated[str, typer.Option(help="Where nnU-Net runs: cuda, cpu or mps.")] = "cuda",
    share: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Of the patches of fold 1 that are synthetic.")
    ] = 0.5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands, write and train nothing.")] = False,
) -> None:
    """Export both arms, train nnU-Net on each, and print the paired difference on the held-out cases."""
    missing = [v for v in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results") if v not in os.environ]
    if missing and not dry_run:
        raise typer.BadParameter(f"set {', '.join(missing)} to folders, as nnU-Net wants them")
    raw, ready, results = (
        Path(os.environ.get(v, f"${v}")) for v in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    )
    name = f"Dataset{dataset:03d}_utility{size}"
    asked = commands(dataset, name, configuration, trainer, device, raw, ready, results)
    if dry_run:
        print(f"# real and synthetic cases of size {size} of {run} go to {raw / name}")
        print(f"# its {SPLITS} goes to {ready / name}: fold 0 is {ARMS[0]}, fold 1 is {ARMS[1]}")
        for words in asked:
            print(shlex.join(words))
        return
    if shutil.which("nnUNetv2_train") is None:
        raise typer.BadParameter("nnU-Net is not installed; install it with: pip install 'medgen[nnunet]'")
    told = combine_size(run, size, raw / name)
    print(f"{told.real} real and {told.synthetic} synthetic cases in {raw / name}")
    splits = json.dumps(balanced(json.loads((raw / name / SPLITS).read_text()), share))
    begun = fold_of(results, name, configuration, trainer, 1)
    if begun.is_dir() and (ready / name / SPLITS).is_file() and (ready / name / SPLITS).read_text() != splits:
        raise typer.BadParameter(f"{begun} was trained on other cases or with another --share; remove it first")
    for words in asked:
        if words[0] == "nnUNetv2_train":  # which reads the folds from here, and would else draw its own
            (ready / name / SPLITS).write_text(splits)
        if subprocess.run(words, check=False).returncode:
            print(f"{shlex.join(words)} failed, see above; mend that and run this again: what is finished is kept")
            raise typer.Exit(1)
        if words[0] == "nnUNetv2_plan_and_preprocess":
            (ready / name / f"{DONE}_{configuration}").touch()
    subjects = {case.case_id: case.subject_id for case in read_cohort(raw / name).cases}
    print(compare([fold_of(results, name, configuration, trainer, fold) for fold in range(len(ARMS))], subjects))


if __name__ == "__main__":
    typer.run(nnunet_utility)
