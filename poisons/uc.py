"""UC: unlearnable clusters.

Needs no labels: the images are clustered by their features, and a generator for each cluster makes
one noise, which moves every image's features to the centre of the next cluster. Source: Zhang et
al., CVPR 2023; code jiamingzhang94/Unlearnable-Clusters.

Deviations: random crops are taken from the stored images, enlarged by 8/7 (the release resizes the
originals to 256 pixels and crops to 224); k-means has a seed; on a GPU a surrogate that is trained
here learns in bf16. As in the release, each generator is trained on the whole set, in index order
(`scope: cluster`, `shuffle`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from core import files, pretrained
from core.batches import Batches
from core.config import Place
from core.errors import ConfigError, UserError
from core.graphs import adam, set_rate
from core.imageset import ImageSet, Rounding
from core.loop import Loop
from core.ranges import (
    BatchSize,
    Count,
    Keys,
    LinfRadius,
    Positive,
    PositiveOrZero,
    Range,
)
from core.run import Run
from core.training import Normalised, cosine
from core.views import Enlargement, Views, fresh
from models.classifiers import Architecture, classifier
from models.generator import SMALLEST, Generator
from poisons.clip import load_tower
from poisons.crafting import on_device, report_seen, say_not_shared, slices
from poisons.frozen import FrozenSurrogate
from poisons.noise import lifted
from poisons.surrogates import Training, train_surrogate

VERSION = 1
SMOKE = {"clusters": 3, "width": 8, "epochs": 1, "batch_size": 64, "learning_rate": 1e-2,
         "surrogate.architecture": "resnet18", "surrogate.width": 8, "surrogate.epochs": 1,
         "surrogate.batch_size": 64, "weights": None}
PATHS = ("weights",)


@dataclass(frozen=True)
class Surrogate(Training):
    # the network; release: resnet50 or CLIP's RN50 (clip, which its file of `weights` describes);
    # LE: resnet18
    architecture: Literal[Architecture, "clip"] = "resnet50"
    # of R, G, B, taken off inside the model; release: ImageNet's
    mean: tuple[float, ...] | None = (0.485, 0.456, 0.406)
    # of R, G, B, divided by inside the model; release: ImageNet's
    std: tuple[Positive, ...] | None = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Config(Keys):
    epsilon: LinfRadius = 16 / 255  # L-inf budget, [0, 1] units; release: 16/255
    # p, and as many noises; release: 10
    clusters: Annotated[int, Range(at_least=2)] = 10
    # how many clusters further the centre is that a cluster moves to; release: 1
    target_offset: Count = 1
    # what a generator is trained on: the whole set, as the release, or its cluster, as the paper
    scope: Literal["all", "cluster"] = "all"
    width: Count = 64               # channels behind the generator's first layer; release: 64
    epochs: Count = 50              # passes of each generator; release: 50
    batch_size: BatchSize = 256     # images a step; release: 256
    shuffle: bool = False           # a new order every epoch, or always the set's, as the release
    learning_rate: Positive = 1e-4  # of Adam, at the start; release: 1e-4
    last_rate: PositiveOrZero = 1e-6    # at the end of a cosine over the steps; release: 1e-6
    weight_decay: PositiveOrZero = 5e-4     # of Adam, in the gradient; release: 5e-4
    # how much larger an image is than the random crop of it; release: 256 / 224 pixels
    enlarged: Enlargement = 256 / 224
    flip: bool = True               # mirror half of the images, drawn anew; release: yes
    rounding: Rounding = "round"    # to whole grey levels: nearest, as the release, or down
    # the surrogate: a file of torchvision's ImageNet weights or of CLIP's, as the release, or the
    # folder of a record with its network; null: it is trained on the clean set first, with labels
    weights: Place | None = None
    # what gives the features; how it is trained matters without `weights` alone
    surrogate: Surrogate = field(default_factory=Surrogate)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_offset % self.clusters == 0:
            raise ConfigError("target_offset", f"{self.target_offset} of {self.clusters} clusters "
                                               "further is the own one")

    def check_images(self, shape: tuple[int, int]) -> None:
        """Before anything begins, as is whether there is a surrogate."""
        if min(shape) < SMALLEST:
            raise UserError(f"images of {shape[0]}x{shape[1]} pixels are too small for the "
                            f"generator, which needs {SMALLEST}")
        if self.surrogate.architecture == "clip" and self.weights is None:
            raise ConfigError("weights", "CLIP is not trained here: name a file of its weights")


def bound(config: Config) -> tuple[str, float]:
    return "linf", config.epsilon


def poison(clean: ImageSet, config: Config, run: Run) -> ImageSet:
    """Row i of the result is row i of `clean` plus the noise of its cluster, whose numbers are in
    clusters.npy (int64 (N,)), and the centres in centres.npy (float32 (clusters, channels)). With
    `fraction=`, these two stay in the folder of the poison that the part is taken from."""
    config.check_images(clean.image_shape)
    if config.clusters > len(clean):
        raise UserError(f"uc.clusters: {len(clean)} images do not fill {config.clusters} clusters")
    say_not_shared(run)
    frozen = FrozenSurrogate(surrogate(clean, config, run), run.device)
    centres, clusters = cluster(clean, frozen, config, run)
    targets = centres.roll(-config.target_offset, 0)
    noises = [train_generator(number, clean, clusters, targets[number], frozen, config, run)
              for number in range(config.clusters)]
    delta = torch.cat(noises).permute(0, 2, 3, 1).cpu()
    poisoned = clean.map_rows(
        lambda images, rows: lifted(images.add_(delta[clusters[rows]]), config.rounding), run,
        rounding=config.rounding)
    if run.world.leads:
        files.write_array(run.work / "clusters.npy", clusters.numpy())
        files.write_array(run.work / "centres.npy", centres.cpu().numpy())
    run.log_once("cluster", sizes=clusters.bincount(minlength=config.clusters).tolist())
    report_seen("sees the cluster that they were moved to", poisoned,
                lambda images: nearness(frozen.features(images), centres),
                (clusters + config.target_offset) % config.clusters, run)
    return poisoned


def surrogate(clean: ImageSet, config: Config, run: Run) -> nn.Module:
    """What gives the features, from a file or trained here; in eval mode."""
    its = config.surrogate
    if config.weights is None:
        return train_surrogate(clean, its, run)
    if its.architecture == "clip":
        network = load_tower(Path(config.weights))
        if clean.image_shape != (network.size, network.size):
            raise UserError(f"uc.surrogate.architecture: {config.weights} takes images of "
                            f"{network.size}x{network.size} pixels, and these have "
                            f"{clean.image_shape[0]}x{clean.image_shape[1]}")
    else:
        with run.initialisation("surrogate"):
            network = classifier(its.architecture, clean.num_classes, clean.image_shape, its.width,
                                 its.stem)
        pretrained.load(network, Path(config.weights), clean, its, "uc.surrogate")
    return (network if its.mean is None else Normalised(network, its.mean, its.std)).eval()


# --- clusters --------------------------------------------------------------------------------


def cluster(clean: ImageSet, frozen: FrozenSurrogate, config: Config, run: Run
            ) -> tuple[torch.Tensor, torch.Tensor]:
    """k-means of the clean images' features: centres (clusters, channels) on the device, and each
    image's cluster (N,) on the CPU. Made once: a resumed run reads them."""
    found = run.load_state("clusters")
    if found is None:
        features = features_of(clean, frozen, run)
        if run.world.leads:
            found = k_means(features, config.clusters, run)
            run.keep("clusters", found)
    found = run.world.from_leader(found)
    sizes = found["clusters"].bincount(minlength=config.clusters).tolist()
    run.say(f"clusters of {', '.join(map(str, sizes))} images")
    if config.scope == "cluster" and min(sizes) < 2:
        raise UserError("uc.clusters: a cluster of one image trains no generator; lower it, or "
                        "write scope=all")
    return found["centres"].to(run.device.torch), found["clusters"]


@torch.no_grad()
def features_of(clean: ImageSet, frozen: FrozenSurrogate, run: Run) -> torch.Tensor:
    """What the surrogate's head sees of each clean image, float32 (N, channels) on the CPU."""
    with run.device.exact():
        return torch.cat([frozen.features(on_device(clean, rows, run)[0]).cpu()
                          for rows in slices(0, len(clean), clean, run)])


def k_means(features: torch.Tensor, clusters: int, run: Run) -> dict[str, torch.Tensor]:
    """scikit-learn's defaults, as the release; by one thread, for the same bytes from any number.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    seed = int(run.rng("uc/clusters").integers(2**31))
    with threadpool_limits(1):
        found = KMeans(clusters, random_state=seed).fit(features.numpy())
    return {"centres": torch.from_numpy(found.cluster_centers_),
            "clusters": torch.from_numpy(found.labels_).long()}


def divergence(features: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """KL(softmax(centre) || softmax(f)), the mean over features f (B, channels)."""
    return F.kl_div(features.log_softmax(1), centre.softmax(0).expand_as(features),
                    reduction="batchmean")


def nearness(features: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """(B, clusters): the least divergence is the largest."""
    shares = centres.softmax(1)
    return features.log_softmax(1) @ shares.T - (shares * centres.log_softmax(1)).sum(1)


# --- generators ------------------------------------------------------------------------------


def train_generator(number: int, clean: ImageSet, clusters: torch.Tensor, centre: torch.Tensor,
                    frozen: FrozenSurrogate, config: Config, run: Run) -> torch.Tensor:
    """The noise of cluster `number`, (1, 3, H, W): what a generator makes of a fixed input, trained
    until the surrogate sees images with that noise at `centre`. Resumable, each by itself."""
    name = f"generator{number}"
    with run.initialisation(name):
        generator = Generator(config.width)
    generator = run.device.place(generator)
    start = torch.rand(1, 3, *clean.image_shape, generator=run.stream("uc/start", number))
    start = start.to(run.device.torch)
    optimizer = adam(generator, run.device, lr=config.learning_rate,
                     weight_decay=config.weight_decay)
    part = clean if config.scope == "all" else clean.subset(
        torch.nonzero(clusters == number)[:, 0].numpy(), name)
    batches = Batches(part, config.batch_size, run, name, shuffle=config.shuffle,
                      drop_last=False)
    last_step = config.epochs * len(batches)

    def rate_at(step: int) -> float:
        return cosine(config.learning_rate, config.last_rate, step / last_step)

    def noise() -> torch.Tensor:
        return generator(start).clamp(-config.epsilon, config.epsilon)

    loop = Loop(run, name, config.epochs, model=generator, optimizer=optimizer)
    for epoch in loop:
        for images, _ in loop.steps(batches):
            set_rate(optimizer, rate_at(loop.number), run.device)
            images = viewed(images, config, run.stream(f"uc/views{number}", loop.number))
            loss = divergence(frozen.features((images + noise()).clamp(0, 1)), centre)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            loop.add(len(images), loss=loss)
        loop.end_epoch(learning_rate=rate_at((epoch + 1) * len(batches) - 1))
    run.world.share(generator)
    with torch.no_grad(), run.device.exact():
        return noise()


def viewed(images: torch.Tensor, config: Config, generator: torch.Generator) -> torch.Tensor:
    """Each image enlarged, cropped at a place of its own to the size that it had, and mirrored or
    not."""
    views = Views(scale=None, resize=config.enlarged, jitter=0.0, grey=0.0,
                  flip=0.5 if config.flip else 0.0)
    return fresh(images, views, generator)
