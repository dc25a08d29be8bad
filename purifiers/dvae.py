"""D-VAE: disentangle the perturbation with a rate-constrained variational auto-encoder.

Each stage trains a fresh D-VAE on the set as it stands, without clean data or augmentation, then
subtracts the perturbation p_hat that it predicts from latent and label, replaces the images by
their reconstruction x_hat, or does both. Two stages by default: subtract at a low rate, then both
at a higher one. Source: Yu et al., ICML 2024, and code yuyi-sd/D-VAE, main_vae_disentangle.py.

Deviations: pixels are rounded to the nearest level (released code truncates: `rounding: floor`);
the network holds only the layers that the method uses; no monitoring classifier; on a GPU it trains
in bf16 (released: `precision: fp32`). At 224x224 the release cannot run: its embedding of 128
channels is added to 512, and its purification allocates 50,000 images of 32x32. Here the embedding
is as wide as the trunk, and the YAML has one vector a class (a map would be 40 million numbers).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from core.config import rebuild
from core.errors import UserError
from core.files import RowFile
from core.graphs import adam
from core.imageset import ImageSet, Rounding, quantize
from core.loop import note_beyond
from core.ranges import Count, CountOrZero, Keys, PositiveOrZero, Range
from core.run import Run
from models.dvae import DVAE, kl_divergence
from purifiers import autoencoding, vae

VERSION = 1
TRAINED_BY = "train_vae"
NEEDS_LABELS = True             # p_hat = D_p(u_y + z)
SMOKE = {"train.width": 8, "train.latent_channels": 16, "train.epochs": 2, "train.batch_size": 64,
         "train.p_hat_start": 1}
Output = Literal["subtract", "reconstruct", "both"]


@dataclass(frozen=True)
class Stage(Keys):
    kld_target: PositiveOrZero      # nats per latent position
    # what the stage leaves of x: x - p_hat, x_hat, or x_hat of x - p_hat
    output: Output

    def __str__(self) -> str:
        return f"KLD target {self.kld_target:g}, output {self.output}"


@dataclass(frozen=True)
class TrainConfig(vae.RateConstrained):
    """Keys under `dvae.train`, for train_vae.py."""

    # release: 1 for the first, hard-coded; --kd 3.0 in every command for the second
    stages: Annotated[tuple[Stage, ...], Range(at_least=1)] = (
        Stage(1.0, "subtract"),
        Stage(3.0, "both"))
    p_hat_start: CountOrZero = 11       # epochs before the hinge on p_hat; release: "if e > 10"
    # the hinge on mean p_hat^2: RMS 11.4/255; release: 0.002; scale it by (epsilon / 8)^2
    p_hat_floor: PositiveOrZero = 0.002
    spatial_embedding: bool = True      # a map per class, as every released command, or a vector
    # z at purification: drawn, as the release, or its mean
    latent: Literal["sample", "mean"] = "sample"
    # of each stage's images to grey levels: nearest, or down, as the release
    rounding: Rounding = "round"


@dataclass(frozen=True)
class Config(Keys):
    """Keys under `dvae`, for purify.py. null: as the checkpoint was trained."""

    stages: Count | None = None         # how many are applied; null: all that were trained
    output: Output | None = None        # of the last applied stage; null: as it was trained
    # z: drawn, or its mean; null: as it was trained
    latent: Literal["sample", "mean"] | None = None
    rounding: Rounding | None = None    # to whole grey levels; null: as it was trained
    # write p_hat of every stage as float16 beside the set, for poisons/reuse.py
    save_perturbation: bool = False


# --- training --------------------------------------------------------------------------------


def train_stage(images: ImageSet, number: int, stage: Stage, config: TrainConfig, run: Run) -> DVAE:
    """Train the D-VAE of one stage (numbered from 1) on `images`; resumable.

    Writes `stage<number>.safetensors` into the run and returns the model in eval mode.
    """
    name = f"stage{number}"
    if number == 1:
        note_beyond(run, config.epochs, p_hat_start=config.p_hat_start)
    model = build_model(images, config, run, name)
    optimizer = adam(model, run.device, lr=config.learning_rate)
    step = training_step(model, optimizer, stage, config, run)
    return autoencoding.train(model, optimizer, step, images, config, run, name)


def training_step(model: DVAE, optimizer: torch.optim.Optimizer, stage: Stage, config: TrainConfig,
                  run: Run) -> Callable[..., dict[str, torch.Tensor]]:
    """A function (x, labels, generator, epoch) that takes one step and returns its losses."""
    return autoencoding.training_step(
        model, optimizer, stage_losses,
        lambda terms, hinge: total_loss(terms, stage.kld_target, hinge, config),
        model.latent_shape, config.clip_norm, run, lambda epoch: hinged(epoch, config))


def build_model(images: ImageSet, config: TrainConfig, run: Run, name: str) -> DVAE:
    return vae.build_model(images, config, run, name, DVAE, num_classes=images.num_classes,
                           spatial_embedding=config.spatial_embedding)


def stage_losses(model: DVAE, x: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor
                 ) -> dict[str, torch.Tensor]:
    """The terms of the loss, in float32: nothing is detached, so MSE(x_hat + p_hat) trains the
    encoder and D_c too."""
    x_hat, p_hat, mu, logvar = model(x, labels, noise)
    x_hat, p_hat = x_hat.float(), p_hat.float()
    return {
        "mse": F.mse_loss(x_hat, x),
        "mse_sum": F.mse_loss((x_hat + p_hat).clamp(0, 1), x),
        "kld": kl_divergence(mu, logvar),
        "p_hat_power": p_hat.square().mean(),
    }


def hinged(epoch: int, config: TrainConfig) -> bool:
    """Whether the power of p_hat is part of the loss yet."""
    return epoch >= config.p_hat_start


def total_loss(terms: dict[str, torch.Tensor], kld_target: float, hinge: bool, config: TrainConfig
               ) -> torch.Tensor:
    """MSE(x_hat) + MSE(x_hat + p_hat) + w max(KLD, target), and with `hinge`
    + max(mean p_hat^2, floor). Below its target a maximum has no gradient."""
    loss = terms["mse"] + terms["mse_sum"] + vae.rate_loss(terms["kld"], kld_target, config)
    if hinge:
        loss = loss + terms["p_hat_power"].clamp(min=config.p_hat_floor)
    return loss


# --- purification ----------------------------------------------------------------------------


def apply_stage(images: ImageSet, model: DVAE, number: int, output: Output, config: TrainConfig,
                run: Run) -> ImageSet:
    """The set that the next stage trains on, in the run's state folder: purify.py remakes it."""
    rows = purify_rows(images, [(model, number, output)], config.latent, config.rounding, run)
    return images.map_rows(rows, run, rounding=config.rounding, device=run.device.torch,
                           file=f"state/stage{number}-set.npy")


def purify(poisoned: ImageSet, config: Config, run: Run) -> ImageSet:
    """Apply the stages of `run.checkpoint` one after the other, with the labels of the set.

    With the checkpoint's own seed, device kind and settings, the result of the first k stages is
    bit for bit what stage k + 1 was trained on. Raises UserError if the checkpoint has fewer.
    """
    trained = rebuild(TrainConfig, run.checkpoint.meta["config"], str(run.checkpoint.path))
    count = config.stages or len(trained.stages)
    if count > len(trained.stages):
        raise UserError(f"dvae.stages: {run.checkpoint.path} has only {len(trained.stages)} stages")
    stages = []
    for number, stage in enumerate(trained.stages[:count], 1):
        model = build_model(poisoned, trained, run, f"stage{number}")
        run.checkpoint.weights_into(model, f"stage{number}").eval()
        output = config.output if number == count and config.output else stage.output
        stages.append((model, number, output))
    latent, rounding = config.latent or trained.latent, config.rounding or trained.rounding

    saved = {}
    if config.save_perturbation:
        saved = {number: RowFile(run.work / f"p_hat{number}.npy", poisoned.images.shape, "float16")
                 for _, number, output in stages if output != "reconstruct"}
        if not saved:
            raise UserError("dvae.save_perturbation: no stage that is applied takes p_hat off its "
                            "images (output: reconstruct)")
    rows = purify_rows(poisoned, stages, latent, rounding, run, saved)
    purified = poisoned.map_rows(rows, run, rounding=rounding, device=run.device.torch,
                                 beside=tuple(saved.values()))
    for file in saved.values():
        file.close()
    return purified


def purify_rows(images: ImageSet, stages: list[tuple[DVAE, int, Output]], latent: str,
                rounding: Rounding, run: Run, saved: dict[int, RowFile] | None = None) -> Callable:
    """A function for map_rows that passes rows through the stages, whose sets are uint8."""
    labels = torch.from_numpy(images.labels)

    def latent_of(model, name, x, rows):
        return vae.latent_of(model, x, rows, latent, partial(run.stream, name))

    def one_stage(model, number, output, x, y, rows):
        if output != "reconstruct":
            p_hat = autoencoding.finite(model.perturbation(
                latent_of(model, f"stage{number}/subtract", x, rows), y), rows)
            if saved:
                saved[number].write(rows.start, p_hat.permute(0, 2, 3, 1).half().cpu().numpy())
            x = (x - p_hat).clamp_(0, 1)
        if output != "subtract":
            x = model.reconstruct(latent_of(model, f"stage{number}/reconstruct", x, rows))
        return x

    def all_stages(x: torch.Tensor, rows: slice) -> torch.Tensor:
        y = labels[rows].to(x.device)
        for i, (model, number, output) in enumerate(stages):
            if i:
                x = quantize(x, rounding).float().div_(255)
            x = one_stage(model, number, output, x, y, rows)
        return x

    return autoencoding.in_batches(all_stages)
