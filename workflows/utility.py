"""What are synthetic pairs worth? The evaluation of `medgen utility` over the public Python API.

    python workflows/utility.py configs/hippocampus.yaml runs/hippocampus --set data.root=$DATA/hippocampus

A generator is trained for each number of labelled cases, then the same segmenter on each training set. It resumes.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from medgen import config, pipeline


def utility(
    experiment: Annotated[Path, typer.Argument(help="Experiment file (YAML), with a section `utility`.")],
    folder: Annotated[Path, typer.Argument(help="Run folder.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override the config.")] = None,
) -> None:
    """Measure, then look at the figures in your own way."""
    found = pipeline.run_utility(config.load(experiment, tuple(overrides or ())), folder=folder)
    for arm in found["arms"]:
        dice = arm["dice"]
        print(f"{arm['labelled']:>4} labelled  {arm['arm']:<15} Dice {dice['value']:.3f}", dice["low"], dice["high"])
    print("primary comparison:", found["primary"])
    cases = pd.read_csv(folder / "utility" / "utility.csv")  # one row for each trial, held-out case and label
    print(cases.groupby(["size", "arm", "label"])["dice"].describe())


if __name__ == "__main__":
    typer.run(utility)
