"""One size of an evaluation: its view of the cohort, its generator, its trials."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medgen.evaluation.alike import numbers_of, pairs_alike, prepared_alike
from medgen.evaluation.utility.arms import Material
from medgen.evaluation.utility.run import Bench, run_trial, teacher_of
from medgen.evaluation.utility.samples import copy_rates
from medgen.evaluation.utility.trial import Size, Trial
from medgen.files import digest, read_json, write_json
from medgen.generation.model import read_spec
from medgen.segment.pairs import Pair, pairs_of
from medgen.stages.quality import shortfall
from medgen.stages.run import Run, named
from medgen.stages.views import View, primary_size
from medgen.store.prepared import INDEX, Prepared
from medgen.store.run_state import read_state

FOLDER = "utility"

Stages = Callable[[Run, str], object]
"""(run, last stage) -> its stages are run, those unchanged skipped."""


class SizeRun:
    """One size of an evaluation: its view of the cohort, its generator, its trials."""

    def __init__(self, run: Run, bench: Bench, size: Size, view: View, stages: Stages) -> None:
        self.bench, self.size, self.view, self.stages = bench, size, view, stages
        n = max([run.config.utility.synthetic, *(run.config.utility.sweep_cases if size == primary_size(run) else ())])
        # A generator's own report is not written, and so asks for nothing.
        own = {"generate": run.config.generate.model_copy(update={"n": n}), "report": type(run.config.report)()}
        config = run.config.model_copy(update=own)
        self.run = Run(
            config,
            run.folder / FOLDER / f"size-{size}",
            named(run.progress, f"size-{size}"),
            # What the codec keeps at few labels is part of the answer; the report says where it is below its bounds.
            force=True,
            fold=view.fold,
        )
        stages(self.run, "prepared")
        self.store = Prepared.open(self.run.folder / "prepared")
        self.inputs: list[Any] = [digest(read_json(self.run.folder / "prepared" / INDEX)), list(view.labelled)]
        self.samples: list[tuple[int, Pair]] = []
        self.made = ""

    def result(self, trial: Trial, tell: Callable[[float, str], None]) -> dict[str, Any]:
        """The result of a trial."""
        inputs = [*self.inputs, self.made] if trial.draws else self.inputs
        place = {case.case_id: i for i, case in enumerate(self.store.cases)}
        material = Material(
            labelled=pairs_of(self.store, [place[i] for i in self.view.labelled]),
            unlabelled=[self.store.image(place[i]) for i in self.view.unlabelled],
            synthetic=self._first,
            teacher=lambda seed: teacher_of(self.bench, replace(trial, seed=seed), material, self.inputs, tell),
            spacing_mm=self.store.spacing_mm,
        )
        return run_trial(self.bench, trial, material, inputs, tell)

    def _first(self, n: int) -> list[Pair]:
        """The samples of the first n requests, less those that the gates left out."""
        return [pair for number, pair in self.samples if number < n]

    def generator(self, n: int, held_out: Sequence[int]) -> dict[str, Any]:
        """Train the generator, draw and prepare its pairs; what is known of them."""
        self.stages(self.run, "synthetic")
        # By what decides a sample, not by how many there are: more of them leave those that were there as they are.
        state = read_state(self.run.folder)["synthetic"]
        self.made = digest([state["hash"], state.get("made", 0)])
        prepared = prepared_alike(
            self.store,
            self.run.folder / "synthetic",
            self.run.folder / "samples",
            self.run.prepare_options(),
            format=self.run.config.generate.format,
            workers=self.run.config.workers or 1,
            on_progress=self.run.stage_progress("samples"),
        )
        self.samples = list(zip(numbers_of(prepared), pairs_alike(self.store, prepared), strict=True))
        train, chosen = self.run.train_cases(), self._first(n)
        trained = read_spec(self.run.folder / "model")[0].trained_on
        return {
            "train": int(trained["cases"]),
            "train_labelled": sum(self.store.cases[i].has_label for i in train),
            "samples": len(self.samples),
            "codec_below": shortfall(self.run),
            "copies": self._copies(train, held_out, [image for image, _ in chosen]),
        }

    def _copies(self, train: Sequence[int], held_out: Sequence[int], images: Sequence[Any]) -> dict[str, Any]:
        """The rates of copies, measured once for the same samples."""
        path: Path = self.run.folder / "copies.json"
        identity = digest([self.inputs, self.made, len(images), list(held_out)])
        if path.is_file() and (before := read_json(path)).get("identity") == identity:
            return dict(before["figures"])
        found = copy_rates(self.store, train, held_out, images)
        write_json(path, {"identity": identity, "figures": found})
        return found
