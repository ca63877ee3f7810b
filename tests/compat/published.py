"""Published layouts at reduced width: the original networks with random weights, saved as their authors save them."""

import json

import monai.config
import monai.utils
import torch
from generative.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi

GROUPS = 4
BRAIN_AUTOENCODER = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 3,
    "num_channels": [4, 8, 8],
    "num_res_blocks": [1, 2, 1],
    "norm_num_groups": GROUPS,
    "norm_eps": 1e-06,
    "attention_levels": [False, False, True],
    "with_encoder_nonlocal_attn": True,
    "with_decoder_nonlocal_attn": False,
}
BRAIN_UNET = {
    "spatial_dims": 3,
    "in_channels": 7,
    "out_channels": 3,
    "num_channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "norm_num_groups": GROUPS,
    "norm_eps": 1e-06,
    "resblock_updown": True,
    "num_head_channels": [0, 8],
    "with_conditioning": True,
    "transformer_num_layers": 1,
    "cross_attention_dim": 4,
    "upcast_attention": True,
    "use_flash_attention": False,
}
BRAIN_SCHEDULER = {
    "_target_": "generative.networks.schedulers.DDIMScheduler",
    "_requires_": ["@load_diffusion"],
    "beta_start": 0.0015,
    "beta_end": 0.0205,
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
MAISI_AUTOENCODER = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 4,
    "num_channels": [4, 8, 8],
    "num_res_blocks": [1, 1, 1],
    "norm_num_groups": GROUPS,
    "norm_eps": 1e-06,
    "attention_levels": [False, False, False],
    "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}
MAISI_UNET = {
    "spatial_dims": 3,
    "in_channels": 4,
    "out_channels": 4,
    "num_channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "num_head_channels": [0, 8],
    "norm_num_groups": GROUPS,
    "include_spacing_input": True,
    "resblock_updown": True,
    "include_fc": True,
}


def random_weights(net, seed=0):
    """Every weight random: MONAI starts some layers at zero, behind which nothing would be compared."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 / max(1, p[0].numel()) ** 0.5 if p.ndim > 1 else 0.3))
    return net.eval()


def brain_networks():
    return random_weights(AutoencoderKL(**BRAIN_AUTOENCODER)), random_weights(DiffusionModelUNet(**BRAIN_UNET), 1)


def maisi_networks(flow):
    told = {"num_class_embeds": 16} if flow else {}
    told |= {f"include_{end}_region_index_input": not flow for end in ("top", "bottom")}
    codec = AutoencoderKlMaisi(**MAISI_AUTOENCODER, num_splits=1, save_mem=False)
    return random_weights(codec), random_weights(DiffusionModelUNetMaisi(**MAISI_UNET, **told), 1)


def write_brain(folder):
    """A bundle's folder, as it is after its download."""
    autoencoder, unet = brain_networks()
    (folder / "models").mkdir(parents=True)
    (folder / "configs").mkdir()
    torch.save(autoencoder.state_dict(), folder / "models" / "autoencoder.pth")
    torch.save(unet.state_dict(), folder / "models" / "diffusion_model.pth")
    config = {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "autoencoder_def": {"_target_": "generative.networks.nets.AutoencoderKL", **BRAIN_AUTOENCODER},
        "autoencoder": "$@autoencoder_def.to(@device)",
        "diffusion_def": {"_target_": "generative.networks.nets.DiffusionModelUNet", **BRAIN_UNET},
        "diffusion": "$@diffusion_def.to(@device)",
        "scheduler": BRAIN_SCHEDULER,
    }
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    return autoencoder, unet


def write_maisi(folder, flow):
    """MAISI's two files among the others of its folder, and its configuration with references."""
    autoencoder, unet = maisi_networks(flow)
    (folder / "models").mkdir(parents=True)
    torch.save(autoencoder.state_dict(), folder / "models" / "autoencoder_epoch273.pt")
    wrapped = {"epoch": 7, "loss": 0.1, "num_train_timesteps": 1000, "scale_factor": torch.tensor(0.8)}
    torch.save({**wrapped, "unet_state_dict": unet.state_dict()}, folder / "models" / "diff_unet_3d.pt")
    for other in ("controlnet_3d", "mask_generation_autoencoder", "mask_generation_diffusion_unet"):
        torch.save({"a": torch.zeros(2, 2)}, folder / "models" / f"{other}.pt")
    scheduler = {"_target_": "monai.networks.schedulers.ddpm.DDPMScheduler", "schedule": "scaled_linear_beta"}
    if flow:
        scheduler = {"_target_": "monai.networks.schedulers.rectified_flow.RFlowScheduler"}
        scheduler |= {"use_timestep_transform": True, "scale": 1.4}
    config = {
        "spatial_dims": 3,
        "latent_channels": 4,
        "include_body_region": not flow,
        "autoencoder_def": {**MAISI_AUTOENCODER, "latent_channels": "@latent_channels", "norm_float16": True},
        "diffusion_unet_def": {
            **MAISI_UNET,
            "in_channels": "@latent_channels",
            "include_top_region_index_input": "@include_body_region",
        },
        "noise_scheduler": {**scheduler, "num_train_timesteps": 1000},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return autoencoder, unet


def generative_schedulers():
    """MONAI Generative's schedulers, which look for a name that MONAI has moved."""
    monai.config.IgniteInfo = monai.utils.IgniteInfo
    import generative.networks.schedulers as schedulers

    return schedulers
