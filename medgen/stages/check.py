"""What is refused before the first stage of an experiment runs."""

from typing import Any

import torch

from medgen.cohort import derive
from medgen.cohort.schema import Covariate, Schema
from medgen.edit import chain as edits
from medgen.errors import InputError, reason
from medgen.generation import distil
from medgen.generation.model import build_codec, build_network
from medgen.models.condition import Condition
from medgen.models.mask import MaskInput
from medgen.models.seam import Noise
from medgen.registry import check_options, resolve
from medgen.stages.quality import check_adversary
from medgen.stages.run import Run, distillation, with_known
from medgen.steering import chain
from medgen.store.prepared import INDEX
from medgen.training.precision import device_of


def check(run: Run) -> None:
    """Everything that can be refused before the first stage runs.

    Raises:
        InputError: naming the key of the config.
    """
    c = run.config
    _check_model(run)
    if run.of_labels:
        try:
            _check_model(run.of_labels)
            if c.generate.masks is None:
                drops = run.of_labels.config.diffusion
                chain.check_nulls((), c.generate.guidance, drops.drop_all, drops.drop_each)
        except InputError as error:
            raise InputError(f"in the label model, {error}") from None
    if c.distil is not None:
        distil.check(distillation(c.distil, c.seed))
        if c.distil.drop > 0 and c.diffusion.drop_all == c.diffusion.drop_each == 0:
            raise InputError("distil.drop asks the model for nothing, which it was not trained on; set distil.drop: 0")
    chain.check(c.generate.steering, c.generate.guidance)
    chain.check_nulls(c.generate.steering, c.generate.guidance, c.diffusion.drop_all, c.diffusion.drop_each)
    edits.check(c.generate.edits)
    if c.generate.masks is not None and not c.generate.masks.expanduser().exists():
        raise InputError(f"generate.masks {c.generate.masks} does not exist; name label maps, or remove the key")
    if c.generate.masks is not None and c.data.folds is not None and (c.generate.masks.expanduser() / INDEX).is_file():
        raise InputError(
            f"generate.masks {c.generate.masks} is a prepared cohort, whose label maps would reach folds that hold "
            "them out; remove the key, or give label files of other patients"
        )
    run.gate_setting().check()
    resolve("formats", c.generate.format, "open")
    if run.phantom is None and not run.root.exists():
        raise InputError(f"data.root {run.root} does not exist; name the folder of your cohort")
    multiple, stride = run.grid_multiple(), c.prepare.stride
    if stride and stride % multiple:
        raise InputError(
            f"prepare.stride {stride} must be a multiple of {multiple} (codec stride times network levels)"
        )
    run.text_encoder  # noqa: B018 (looks at its folder)
    for expression in c.covariates.derived.values():
        derive.check(expression)
    if c.prepare.shape and any(n % multiple for n in c.prepare.shape):
        raise InputError(f"prepare.shape {list(c.prepare.shape)} must be multiples of {multiple} along each axis")
    run.prepare_options()  # looks at the rest of them
    if c.threads:
        torch.set_num_threads(c.threads)
    device_of(c.device)


def _check_model(run: Run) -> None:
    """Refuse kinds, options and patches that make no codec and no denoiser."""
    c = run.config
    resolve("models", c.autoencoder.kind, "stride")  # what makes a module of that room a codec
    resolve("models", c.diffusion.network, "factor")  # and what makes one a denoiser
    check_options("models", c.autoencoder.kind, "build", c.autoencoder.options)
    check_options("models", c.diffusion.network, "build", c.diffusion.network_options)
    check_options("diffusion", c.diffusion.process, "build", c.diffusion.process_options)
    check_options("sampling", c.generate.sampler, "sample", c.generate.sampler_options)
    _check_drawing(run)
    _check_patch(run)
    perceptual = c.autoencoder.losses.perceptual_weights
    if perceptual is not None and not perceptual.is_file():
        raise InputError(f"autoencoder.losses.perceptual_weights {perceptual} does not exist; give a MedicalNet file")
    _check_crops(run)
    _build_networks(run)


def _check_patch(run: Run) -> None:
    """Refuse patches that the codec or its adversary cannot take."""
    c = run.config.autoencoder
    patch, codec_stride = c.patch, run.codec_stride()
    if patch and any(n % codec_stride for n in patch):
        raise InputError(f"autoencoder.patch {list(patch)} must be multiples of {codec_stride}, the codec's stride")
    if patch:
        check_adversary(c, patch)


def _check_crops(run: Run) -> None:
    """Refuse latent patches that the network cannot take."""
    d = run.config.diffusion
    if d.patch is None:
        if d.full_share not in (1.0, type(d).model_fields["full_share"].default):
            raise InputError("diffusion.full_share says how often a step is whole beside patches; set diffusion.patch")
        return
    multiple = with_known(resolve("models", d.network, "factor"), d.network_options)
    if any(n % multiple for n in d.patch):
        raise InputError(f"diffusion.patch {list(d.patch)} must be multiples of {multiple}, the network's factor")
    try:
        resolve("models", d.network, "coordinates")
    except InputError:
        raise InputError(
            f"diffusion.patch: network '{d.network}' is not told where a crop lies; remove the key or take network unet"
        ) from None


def _check_drawing(run: Run) -> None:
    """Build the process and draw without a step: both then say what they think of their options' values."""
    d, g = run.config.diffusion, run.config.generate
    process = resolve("diffusion", d.process, "build")(**d.process_options)
    solver = resolve("sampling", g.sampler, "sample")

    def first_level_only(model: Any, x: Any, sigmas: Any, cond: Condition, *, noise: Noise) -> Any:
        return solver(model, x, sigmas[:1], cond, noise=noise, **g.sampler_options)

    shape, nothing = (1, 1, 1, 1, 1), torch.zeros(1, 0)
    cond = Condition((), nothing, nothing.bool())
    process.sample(None, shape, cond, first_level_only, lambda step: torch.zeros(shape), steps=g.steps)


def _build_networks(run: Run) -> None:
    """Build both networks without memory: options that do not fit each other are refused before anything runs."""
    some = Schema((Covariate("age"),))
    mask = MaskInput(2, run.codec_stride()) if run.config.pairs == "mask" else None

    def some_codec() -> None:
        try:
            build_codec(run.codec_kind(), 1, 2)
        except InputError:
            build_codec(run.codec_kind(), 1, 0)  # a kind without labels: the cohort may have none

    for section, build in (
        ("autoencoder.options", some_codec),
        ("diffusion.network_options", lambda: build_network(run.network_kind(), 1, some, mask)),
    ):
        try:
            with torch.device("meta"):
                build()
        except InputError:
            raise
        except (ValueError, TypeError, ZeroDivisionError, IndexError, RuntimeError) as error:
            raise InputError(f"{section} do not make a network ({reason(error)}); mend them") from None
