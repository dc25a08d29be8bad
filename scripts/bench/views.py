"""Views of a batch, beside torchvision's of one image after another."""

from collections.abc import Iterator

import torch

from core.imageset import to_floats
from core.views import Views, apply, draw
from scripts.bench.clock import Bench, Row


def views(bench: Bench) -> Iterator[Row]:
    """From stored pixels to a batch of views, as SimCLR's in CP's protocol: ours on the run's
    device, torchvision's as in a worker's loop over Pillow images. On a CPU both on one core."""
    cores = torch.get_num_threads()
    if not bench.cuda:
        torch.set_num_threads(1)
    try:
        for side, count in ((32, 512), (224, 64)):
            yield measured(bench, side, 8 if bench.smoke else count)
    finally:
        torch.set_num_threads(cores)


def measured(bench: Bench, side: int, count: int) -> Row:
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(0, 256, (count, side, side, 3), dtype=torch.uint8, generator=generator)
    here = stored.to(bench.device.torch)

    def ours() -> torch.Tensor:
        drawn = draw(Views(), count, (side, side), generator, here.device)
        return apply(to_floats(here), drawn)

    mine, theirs = bench.seconds(ours, one_by_one(stored), steps=bench.steps)
    return Row(f"views of {side}x{side}", count / mine, theirs / mine,
               note="ratio to torchvision's v2, image by image, on a core")


def one_by_one(stored: torch.Tensor):
    """torchvision's v2 transforms on each Pillow image, and the batch of them."""
    from PIL import Image
    from torchvision.transforms import v2

    one = v2.Compose([
        v2.RandomResizedCrop(stored.shape[1], (0.2, 1.0)), v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), v2.RandomGrayscale(0.2),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    pictures = [Image.fromarray(image) for image in stored.numpy()]
    return lambda: torch.stack([one(picture) for picture in pictures])
