"""MONAI's AutoencoderKL as the notebook generation/3d_ldm/3d_ldm_tutorial.ipynb of Project-MONAI/tutorials trains it.

Widths 32, 64, 64 with attention at the last level, batches of two whole volumes in [0, 1], Adam at 1e-4, L1 + 1e-6 KL,
and after five epochs a least-squares patch discriminator with weight 0.01; float32, as there. Two things differ. The
notebook's perceptual loss of weight 0.001 needs weights that are downloaded, and is left out. MONAI's loader is given
volumes that are already in memory.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.losses import PatchAdversarialLoss
from monai.networks.nets import AutoencoderKL, PatchDiscriminator
from monai.utils import set_determinism

WARM_UP_EPOCHS = 5
ADVERSARIAL, KL = 0.01, 1e-6


class TutorialAutoencoder:
    """The tutorial's networks.

    Args:
        latent_channels: of the latent.
        device: where they are.
        light: widths 16, 32, 64 and no attention, for machines on which the tutorial's network takes few steps.
    """

    def __init__(self, latent_channels: int, device: torch.device, *, light: bool = False) -> None:
        set_determinism(42)
        self.device = device
        self.autoencoder = AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(16, 32, 64) if light else (32, 64, 64),
            latent_channels=latent_channels,
            num_res_blocks=1,
            norm_num_groups=16,
            with_encoder_nonlocal_attn=not light,
            with_decoder_nonlocal_attn=not light,
            attention_levels=(False, False, not light),
        ).to(device)
        self.discriminator = PatchDiscriminator(
            spatial_dims=3, num_layers_d=3, channels=32, in_channels=1, out_channels=1
        ).to(device)

    def train(self, images: torch.Tensor, seconds: float, say: Callable[[int, int, str], None]) -> dict[str, float]:
        """Train on images (N, 1, X, Y, Z) in [-1, 1] for some seconds, and say how it went."""
        loader = DataLoader(Dataset((images + 1) / 2), batch_size=2, shuffle=True)
        adversarial = PatchAdversarialLoss(criterion="least_squares")
        optimiser_g = torch.optim.Adam(self.autoencoder.parameters(), lr=1e-4)
        optimiser_d = torch.optim.Adam(self.discriminator.parameters(), lr=1e-4)
        start, steps, epoch, rates = time.monotonic(), 0, 0, []
        spent = 0.0
        self.autoencoder.train()
        self.discriminator.train()
        while spent < seconds:
            for batch in loader:
                batch = batch.as_tensor().to(self.device) if hasattr(batch, "as_tensor") else batch.to(self.device)
                optimiser_g.zero_grad(set_to_none=True)
                made, mean, sigma = self.autoencoder(batch)
                kl = 0.5 * torch.sum(mean.pow(2) + sigma.pow(2) - torch.log(sigma.pow(2)) - 1, dim=[1, 2, 3, 4])
                loss = (made - batch).abs().mean() + KL * kl.sum() / kl.shape[0]
                if epoch > WARM_UP_EPOCHS:
                    logits = self.discriminator(made.contiguous().float())[-1]
                    loss = loss + ADVERSARIAL * adversarial(logits, target_is_real=True, for_discriminator=False)
                loss.backward()
                optimiser_g.step()
                if epoch > WARM_UP_EPOCHS:
                    optimiser_d.zero_grad(set_to_none=True)
                    fake = self.discriminator(made.contiguous().detach())[-1]
                    real = self.discriminator(batch.contiguous().detach())[-1]
                    judged = adversarial(fake, target_is_real=False, for_discriminator=True)
                    judged = judged + adversarial(real, target_is_real=True, for_discriminator=True)
                    (ADVERSARIAL * 0.5 * judged).backward()
                    optimiser_d.step()
                steps, before, spent = steps + 1, spent, time.monotonic() - start
                rates.append(batch.numel() / (spent - before))
                say(
                    min(int(spent), int(seconds)),
                    int(seconds),
                    f"epoch {epoch} step {steps}: loss {float(loss.detach()):.4f}",
                )
                if spent >= seconds:
                    break
            epoch += 1
        self.autoencoder.eval()
        return {"voxels_per_s": median(rates), "seconds": spent, "steps": steps}

    @torch.no_grad()
    def reconstruct(self, image: np.ndarray) -> np.ndarray:
        """An image (1, X, Y, Z) in [-1, 1] through the posterior's mean."""
        x = torch.from_numpy((image[None] + 1) / 2).to(self.device)
        made = self.autoencoder.decode(self.autoencoder.encode(x)[0])
        return (2 * made[0].clamp(0, 1) - 1).float().cpu().numpy()
