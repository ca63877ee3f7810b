"""The structure of a network is read back from its weights, at published widths too."""

import itertools
from pathlib import Path

import pytest
import torch
from generative.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

from medgen.cohort.schema import Covariate, Schema
from medgen.compat.rename import renamed
from medgen.compat.shapes import autoencoder_shape, unet_shape
from medgen.errors import InputError
from medgen.models import hybrid_unet, maisi_unet, published_kl

FILE = Path("weights.pt")


def on_meta(build, **options):
    with torch.device("meta"):
        return build(spatial_dims=3, **options).state_dict()


def shapes(state):
    return {k: tuple(t.shape) for k, t in state.items()}


@pytest.mark.parametrize("levels", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("middles", list(itertools.product([False, True], repeat=2)))
def test_attention_of_an_autoencoder_is_found_wherever_it_is(levels, middles):
    widths = {"num_channels": (4, 8, 12), "num_res_blocks": (1, 2, 3), "norm_num_groups": 4, "latent_channels": 5}
    attention = {"with_encoder_nonlocal_attn": middles[0], "with_decoder_nonlocal_attn": middles[1]}
    found = autoencoder_shape(on_meta(AutoencoderKL, attention_levels=levels, **widths, **attention), FILE)
    assert (found.channels, found.res_blocks, found.attention) == ((4, 8, 12), (1, 2, 3), levels)
    assert (found.encoder_attention, found.decoder_attention) == middles
    assert (found.image_channels, found.latent_channels) == (1, 5)


def test_the_brain_ldm_at_published_width_is_our_default():
    widths = {"num_channels": (64, 128, 128, 128), "num_res_blocks": 2, "attention_levels": (False,) * 4}
    middle = {"with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False}
    state = on_meta(AutoencoderKL, latent_channels=3, **widths, **middle)
    with torch.device("meta"):
        ours = published_kl.build(1, 0)
    assert shapes(ours.net.state_dict()) == shapes(renamed(state))
    state = on_meta(
        DiffusionModelUNet,
        in_channels=7,
        out_channels=3,
        num_channels=(256, 512, 768),
        num_res_blocks=2,
        attention_levels=(False, True, True),
        resblock_updown=True,
        num_head_channels=(0, 512, 768),
        with_conditioning=True,
        cross_attention_dim=4,
    )
    found = unet_shape(state, FILE)
    assert (found.channels, found.res_blocks, found.attention) == ((256, 512, 768), (2, 2, 2), (False, True, True))
    assert (found.context, found.layers, found.updown, found.in_channels) == (4, 1, True, 7)
    with torch.device("meta"):
        ours = hybrid_unet.build(3, Schema(tuple(Covariate(n) for n in "abcd")))
    assert shapes(ours.unet.state_dict()) == shapes(renamed(state))


@pytest.mark.parametrize("flow", [False, True])
def test_maisi_at_published_width_is_our_default(flow):
    widths = {"num_channels": (64, 128, 256), "num_res_blocks": (2, 2, 2), "attention_levels": (False,) * 3}
    state = on_meta(AutoencoderKlMaisi, in_channels=1, out_channels=1, latent_channels=4, num_splits=8, **widths)
    found = autoencoder_shape(state, FILE)
    assert (found.channels, found.res_blocks, found.attention) == ((64, 128, 256), (2, 2, 2), (False,) * 3)
    options = {"num_class_embeds": 128, "include_fc": True} if flow else {}
    regions = {f"include_{end}_region_index_input": not flow for end in ("top", "bottom")}
    state = on_meta(
        DiffusionModelUNetMaisi,
        in_channels=4,
        out_channels=4,
        num_channels=(64, 128, 256, 512),
        num_res_blocks=2,
        attention_levels=(False, False, True, True),
        num_head_channels=(0, 0, 32, 32),
        resblock_updown=flow,
        include_spacing_input=True,
        **options,
        **regions,
    )
    shape = unet_shape(state, FILE)
    assert (shape.classes, shape.regions, shape.spacing) == (128 if flow else 0, not flow, True)
    assert (shape.updown, shape.projected, shape.context) == (flow, flow, 0)
    names = ("modality",) if flow else maisi_unet.REGION_COLUMNS
    schema = Schema(tuple(Covariate(n, "categorical", levels=("a",)) for n in names))
    classes = {"classes": 128, "codes": (1,)} if flow else {}
    with torch.device("meta"):
        ours = maisi_unet.build(
            4, schema, updown=flow, include_fc=flow, regions=not flow, spacing_mm=(1.0, 1.0, 1.0), **classes
        )
    assert shapes(ours.unet.state_dict()) == shapes(state)


def test_flat_networks_are_refused():
    with torch.device("meta"):
        flat = AutoencoderKL(
            2, num_channels=(4, 4), attention_levels=(False, False), num_res_blocks=1, norm_num_groups=4
        )
    with pytest.raises(InputError, match="not a whole 3D autoencoder"):
        autoencoder_shape(flat.state_dict(), FILE)
