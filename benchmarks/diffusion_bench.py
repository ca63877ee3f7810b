"""What the benchmarks of diffusion share: one cohort, one codec, one segmenter, and arms trained for the same time.

Everything is kept below ``--work``, under names that hold a digest of all that decides it: a killed benchmark goes on
where it stopped, one with another setting adds to what is there, and nothing of an older setting is taken for a newer.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from codec import prepared

from medgen import config as experiments
from medgen import pipeline
from medgen.cohort.schema import volume_column
from medgen.config import Config
from medgen.config.codec import LatentsConfig
from medgen.evaluation.reference import LEAST, Measured, Reference, measure_reference
from medgen.files import atomic, digest, sha256_file
from medgen.generation.generator import Drawing, Generator
from medgen.generation.model import build_codec, build_network
from medgen.measure.features import Projection
from medgen.models.codec import Codec
from medgen.segment.segmenter import WEIGHTS, Segmenter
from medgen.segment.train import train_on
from medgen.stages import copies
from medgen.stages.check import check
from medgen.stages.codec import trained_codec
from medgen.stages.conditions import fit_encoder
from medgen.stages.masks import label_count
from medgen.stages.run import Run
from medgen.store.prepared import Prepared
from medgen.training.precision import device_of

FOR_EVER = 10**9
PATCH = 32
COMPONENTS, BLOCK = 16, 2  # of the features' projection; voxels whose mean the voxel space takes
_FEW_LABELS = 2
_USUAL_COLUMNS = ("age", "sex", "ventricles_ml")
_STAGES = {stage.name: stage.work for stage in pipeline.STAGES}
_EVERY_SECONDS = 30.0


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that the benchmarks share."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, required=True, help="a cohort with labels")
    made.add_argument("--minutes", type=float, default=20.0, help="of training, each arm")
    made.add_argument("--json", type=Path, help="write the figures here")
    made.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="where everything is kept")
    made.add_argument("--codec-minutes", type=float, default=6.0, help="of training the codec that all arms share")
    made.add_argument("--segmenter-steps", type=int, default=1500, help="of training the segmenter that measures")
    made.add_argument("--n", type=int, default=64, help="samples")
    made.add_argument("--batch", type=int, default=16, help="samples drawn at a time")
    made.add_argument("--network", help="kind of our network, the package's default without")
    made.add_argument("--columns", nargs="+", help="conditions; by default volumes, or age, sex and ventricles")
    made.add_argument("--spacing", type=float, help="voxel size in mm; fine and large cohorts are brought to 2 mm")
    made.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of our experiment's config")
    made.add_argument("--device", default="auto")
    made.add_argument("--threads", type=int)
    return made


@dataclass(frozen=True)
class Bench:
    """A cohort under measurement.

    Attributes:
        options: of the command line.
        config: of our experiment.
        store: the prepared cohort.
        folder: of this cohort and this codec.
        columns: conditions.
    """

    options: argparse.Namespace
    config: Config
    store: Prepared
    folder: Path
    columns: tuple[str, ...]

    @property
    def device(self) -> torch.device:
        """Where networks run."""
        return device_of(self.options.device)

    @property
    def volumes(self) -> tuple[str, ...]:
        """The conditions that are volumes of labels: what is asked for and measured."""
        known = {volume_column(name) for name in self.store.label_names[1:]}
        return tuple(c for c in self.columns if c in known)

    def run(self, folder: Path, config: Config | None = None, store: Prepared | None = None) -> Run:
        """An experiment whose stages run in a folder."""
        return Run(config or self.config, folder, telling(folder.name), known_store=store or self.store)

    def training_values(self, column: str) -> np.ndarray:
        """A numeric column's values over the training cases, missing ones left out."""
        cells = [self.store.cases[i].covariates.get(column) for i in self.store.indices("train")]
        return np.array([float(v) for v in cells if v is not None])


def telling(what: str) -> Callable[[str, int, int, str], None]:
    """Progress of stages as plain lines, the last one of each stage and one now and then."""
    last: dict[str, float] = {}

    def tell(stage: str, done: int, total: int, remark: str) -> None:
        now = time.monotonic()
        if done >= total or now - last.get(stage, -_EVERY_SECONDS) >= _EVERY_SECONDS:
            last[stage] = now
            print(f"[{time.strftime('%H:%M:%S')}] {what} {stage}: {100 * done // max(total, 1)}% {remark}", flush=True)

    return tell


def open_bench(options: argparse.Namespace) -> Bench:
    """Prepare the cohort, with a fixed fifth of its subjects held out."""
    if options.threads:
        torch.set_num_threads(options.threads)
    raw: dict[str, Any] = {
        "name": "benchmark",
        "device": options.device,
        "data": {"root": str(options.data), "validation": 0.2},
        "autoencoder": {"kind": "wavelet", "training": {"steps": FOR_EVER, "minutes": options.codec_minutes}},
        # The last weights, as the peer's: the held-out cases are what both are measured against, and choose nothing.
        "diffusion": {"keep": "last", "ema": "long", "training": {"steps": FOR_EVER, "minutes": options.minutes}},
    }
    if options.network:
        raw["diffusion"]["network"] = options.network
    config = experiments.build(raw, "the benchmark's experiment", tuple(options.set))
    run = Run(config, options.work, telling("benchmark"))
    check(run)
    multiple = run.grid_multiple()
    key = digest([str(options.data.resolve()), options.spacing, multiple])[:8]
    cohort = options.work / f"{options.data.name}-{key}"
    store = prepared(options.data, cohort / "prepared", options.spacing, multiple)
    columns = tuple(options.columns or _columns(store))
    patch = config.autoencoder.patch or tuple(min(PATCH, n) for n in store.shape)
    config = config.model_copy(
        update={
            "covariates": config.covariates.model_copy(update={"use": columns}),
            "autoencoder": config.autoencoder.model_copy(update={"patch": patch}),
        }
    )
    codec = shapes(build_codec(run.codec_kind(), len(store.channels), label_count(store)))
    key = digest([config.autoencoder.model_dump(mode="json"), config.seed, codec])[:8]
    train, held_out = (len(store.indices(side)) for side in ("train", "val"))
    print(f"{train} training and {held_out} held-out cases of {store.shape} voxels at {store.spacing_mm} mm")
    print(f"conditions: {', '.join(columns)}")
    print(f"{torch.get_num_threads()} threads, {device_of(options.device)}, {os.cpu_count()} cores; work in {cohort}")
    return Bench(options, config, store, cohort / f"codec-{key}", columns)


def shapes(module: torch.nn.Module) -> dict[str, list[int]]:
    """Shapes of all weights: a kind whose defaults have changed is another network."""
    return {name: list(t.shape) for name, t in module.state_dict().items()}


def _columns(store: Prepared) -> list[str]:
    """All volumes of a cohort of few labels; else age, sex and the ventricles, or the first volume."""
    volumes = [volume_column(name) for name in store.label_names[1:]]
    if len(volumes) <= _FEW_LABELS:
        return volumes
    usual = [name for name in _USUAL_COLUMNS if name in store.schema]
    return usual if any(name in volumes for name in usual) else [*usual, volumes[0]]


def shared_codec(bench: Bench) -> Codec:
    """The codec of all arms, trained, and the latents it makes of every case as it is."""
    run = bench.run(bench.folder)
    _STAGES["autoencoder"](run)  # goes on from its checkpoint, and does nothing where that is finished
    if not (bench.folder / "autoencoder" / "quality.json").exists():
        _STAGES["quality"](run)
    encoded(bench, LatentsConfig())
    return trained_codec(run)


def encoded(bench: Bench, config: LatentsConfig) -> Path:
    """The latents of the shared codec, once for each way of encoding: ours may have augmented copies, the peer none."""
    folder = bench.folder / f"encoded-{digest(_said_of(config))[:8]}"
    if not (folder / "latents" / "index.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _link(folder / "autoencoder", Path("..") / "autoencoder")
        _STAGES["latents"](bench.run(folder, bench.config.model_copy(update={"latents": config})))
    return folder / "latents"


def _said_of(config: LatentsConfig) -> dict[str, Any]:
    """What decides the latents beside the codec; copies are not always made as they were."""
    return config.model_dump(mode="json") | ({"version": copies.VERSION} if config.copies else {})


def _link(place: Path, target: Path) -> None:
    if not place.exists():
        place.symlink_to(target, target_is_directory=True)


def _segmenter_folder(bench: Bench) -> Path:
    return bench.folder.parent / f"segmenter-{bench.options.segmenter_steps}"


def segmenter_identity(bench: Bench) -> str:
    """SHA-256 of the weights of the segmenter that measures."""
    return sha256_file(_segmenter_folder(bench) / WEIGHTS)


def yardstick(bench: Bench, least: int = LEAST) -> Reference:
    """The independent segmenter, trained on the real training cases, and what it says of all real cases.

    Args:
        bench: the cohort.
        least: training and held-out cases that there must be.
    """
    found = min(len(bench.store.indices(side)) for side in ("train", "val"))
    if found < least:
        raise SystemExit(f"{bench.options.data} has {found} cases on one side, and distributions need {least}")
    tell, began = telling("real"), time.monotonic()
    folder = _segmenter_folder(bench)
    segmenter = train_on(
        bench.store,
        bench.store.indices("train"),
        folder,
        steps=bench.options.segmenter_steps,
        device=bench.options.device,
        on_progress=lambda done, total, remark: tell("segmenter", done, total, remark),
    )
    # By weights and cases: what another segmenter said is measured again.
    key = digest([segmenter_identity(bench), [case.key for case in bench.store.cases]])[:8]
    path = folder / f"reference-{key}.npz"
    if not path.exists():
        measured = measure_reference(
            bench.store,
            segmenter,
            components=COMPONENTS,
            block=BLOCK,
            least=least,
            on_progress=lambda done, total, remark: tell("reference", done, total, remark),
        )
        with atomic(path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, inside=measured.inside, frame=measured.frame, **_arrays(measured))
    found = _reference(bench.store, segmenter, path)
    dice = np.nanmean(found.held_out.dice, axis=0)
    named = ", ".join(f"{n} {d:.3f}" for n, d in zip(bench.store.label_names[1:], dice, strict=True))
    print(f"the segmenter's Dice on held-out cases: {named} ({time.monotonic() - began:.0f} s)", flush=True)
    return found


def _arrays(reference: Reference) -> dict[str, np.ndarray]:
    sides = {"train": reference.train, "held_out": reference.held_out}
    return {f"{side}_{f.name}": getattr(found, f.name) for side, found in sides.items() for f in fields(Measured)}


def _reference(store: Prepared, segmenter: Segmenter, path: Path) -> Reference:
    """The reference from its arrays; for the values, :func:`medgen.evaluation.reference.measure_reference`."""
    with np.load(path, allow_pickle=False) as a:
        train, held_out = (
            Measured(**{f.name: a[f"{side}_{f.name}"] for f in fields(Measured)}) for side in ("train", "held_out")
        )
        inside, frame = a["inside"], a["frame"]
    return Reference(
        store=store,
        segmenter=segmenter,
        inside=inside,
        frame=frame,
        block=BLOCK,
        train_cases=store.indices("train"),
        held_out_cases=store.indices("val"),
        train=train,
        held_out=held_out,
        projection=Projection.fit(train.features, COMPONENTS),
    )


def arm(bench: Bench, name: str, diffusion: Mapping[str, Any] | None = None, store: Prepared | None = None) -> Path:
    """Train our model and return its model folder; how samples are drawn is no part of it (:func:`loaded`).

    Args:
        bench: the cohort.
        name: of the arm.
        diffusion: fields of the config's section that are this arm's own.
        store: the cohort with other covariates, where the arm is trained on such.
    """
    section = bench.config.diffusion.model_dump(mode="json") | dict(diffusion or {})
    raw = bench.config.model_dump(mode="json") | {"diffusion": section}
    config = Config.model_validate(raw)
    rows = [dict(case.covariates) for case in store.cases] if store else None
    said = [_said_of(config.latents), config.diffusion.model_dump(mode="json"), bench.columns, rows]
    run = bench.run(bench.folder, config, store)
    codec = build_codec(run.codec_kind(), len(bench.store.channels), label_count(bench.store))
    network = build_network(run.network_kind(), codec.latent_channels, fit_encoder(run)[0].schema)
    said.append(shapes(network))
    folder = bench.folder / "arms" / f"{name}-{digest(said)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    _link(folder / "autoencoder", Path("../../autoencoder"))
    _link(folder / "latents", Path("../..") / encoded(bench, config.latents).relative_to(bench.folder))
    if not (folder / "model" / "model.json").exists():
        run = replace(run, folder=folder, progress=telling(folder.name))
        _STAGES["diffusion"](run)
        _STAGES["model"](run)
    return folder / "model"


def loaded(bench: Bench, model: Path) -> Generator:
    """A trained arm, drawing as the experiment's section ``generate`` says."""
    g, found = bench.config.generate, Generator.load(model, device=bench.options.device)
    how = Drawing(g.sampler, g.sampler_options, g.steps, g.guidance, steering=g.steering)
    return Generator(found.model, how, found.context)


def seconds_of(work: Callable[[], object], times: int = 2) -> float:
    """Wall-clock of a call, after a first one that warms up."""
    work()
    began = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - began) / times
