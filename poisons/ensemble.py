"""Checkpoints of one training: SEP and DUNE take the gradients of all of them.

Source: Chen et al., ICLR 2023 (SEP); code Sizhe-Chen/SEP.
"""

from dataclasses import dataclass

from torch import nn

from core.errors import ConfigError
from core.imageset import ImageSet
from core.ranges import Count, Positive
from core.run import Run
from core.training import RateSchedule
from poisons.frozen import FrozenSurrogate
from poisons.surrogates import Training, train_surrogate


@dataclass(frozen=True)
class Surrogate(Training):
    epochs: Count = 120             # passes over the clean set; SEP's release: 120
    # a tenth at each milestone, after a climb from 1e-3 in the first epoch; SEP's release
    schedule: RateSchedule = "warm_multistep"
    milestones: tuple[Count, ...] = (75, 90)    # in epochs; SEP's release: 75 and 90
    # largest L2 norm of the gradient; null: no clipping, as SEP's release
    clip_norm: Positive | None = None
    # of R, G, B, taken off inside the model; SEP's and DUNE's releases: CIFAR-10's
    mean: tuple[float, ...] | None = (0.4914, 0.4822, 0.4465)
    # of R, G, B, divided by inside the model; SEP's and DUNE's releases: CIFAR-10's
    std: tuple[Positive, ...] | None = (0.2470, 0.2435, 0.2616)


def check_checkpoints(checkpoints: int, surrogate: Surrogate) -> None:
    """Raise ConfigError unless the training has so many epochs."""
    if surrogate.steps is not None:
        raise ConfigError("surrogate.steps", "checkpoints are of epochs: set epochs instead")
    if checkpoints > surrogate.epochs:
        raise ConfigError("checkpoints", f"{checkpoints} do not fit the surrogate's "
                                         f"{surrogate.epochs} epochs")


def train_ensemble(clean: ImageSet, checkpoints: int, surrogate: Surrogate, run: Run
                   ) -> list[FrozenSurrogate]:
    """The surrogate as it was after each of `checkpoints` epochs."""
    kept = spaced(surrogate.epochs, checkpoints)

    def keep(epoch: int, model: nn.Module) -> None:
        if epoch in kept and run.world.leads:
            run.keep(f"surrogate{epoch}", model.state_dict())

    model = train_surrogate(clean, surrogate, run, after_epoch=keep)
    run.world.barrier()
    ensemble = []
    for epoch in kept:
        model.load_state_dict(run.load_state(f"surrogate{epoch}", required=True))
        ensemble.append(FrozenSurrogate(model, run.device))
    return ensemble


def spaced(epochs: int, checkpoints: int) -> list[int]:
    """Equally spaced epochs, from 0, the last one included."""
    return [round(epochs / checkpoints * (i + 1)) - 1 for i in range(checkpoints)]
