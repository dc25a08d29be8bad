"""core/contrastive.py and models/contrastive.py: facts of losses, targets, queue and heads."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import count
from torch import nn

from core import contrastive
from core.contrastive import BYOL, LOSS_SCALE, MoCo, SimCLR, byol_loss, moco_loss, nt_xent
from core.distributed import World
from core.errors import ConfigError
from models import contrastive as networks
from models.classifiers import classifier

FIRST = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
SECOND = torch.tensor([[1.0, 0.0], [0.6, 0.8]])


def unit(rows: int, channels: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, channels, generator=generator), dim=1)


def tiny_network() -> nn.Module:
    """A network (B, 3, 2, 2) -> unit vectors (B, 4) with batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Linear(6, 4),
                         networks.Unit())


def two_views(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, rows, 3, 2, 2, generator=torch.Generator().manual_seed(1)).unbind()


# --- NT-Xent ---------------------------------------------------------------------------------


def test_nt_xent_of_two_pairs():
    """By hand: -s_pos + log of the sum over the three others, with T = 0.5."""
    loss = nt_xent(FIRST, SECOND, temperature=0.5)
    per_view = [0.460373, 0.339178, 0.460373, 0.850424]
    assert loss.item() == pytest.approx(sum(per_view) / 4, abs=1e-6)
    assert loss.item() == pytest.approx(0.527587, abs=1e-6)
    assert loss.item() * 0.5 / 0.07 == pytest.approx(3.768478, abs=1e-5)    # as CP writes it


def test_nt_xent_of_perfect_and_of_collapsed_pairs():
    assert nt_xent(torch.eye(2), torch.eye(2), temperature=0.5).item() == pytest.approx(
        math.log(1 + 2 * math.exp(-2)), abs=1e-6)
    same = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    for temperature in (0.1, 0.5):
        assert nt_xent(same, same, temperature=temperature).item() == pytest.approx(
            math.log(7), abs=1e-5)


def test_nt_xent_knows_no_order_and_no_direction():
    first, second = unit(6), unit(6, seed=1)
    loss, order = nt_xent(first, second, temperature=0.5), torch.randperm(6)
    turn = torch.linalg.qr(torch.randn(8, 8)).Q
    for others in ((first[order], second[order]), (second, first), (first @ turn, second @ turn)):
        torch.testing.assert_close(nt_xent(*others, temperature=0.5), loss)


def test_three_views_are_the_mean_over_their_positives():
    views, total = [unit(3, seed=seed) for seed in range(3)], 0.0
    z = torch.cat(views)
    for i in range(9):
        others = [j for j in range(9) if j != i]
        every = torch.logsumexp(torch.stack([z[i] @ z[j] / 0.5 for j in others]), 0)
        positives = [every - z[i] @ z[j] / 0.5 for j in others if j % 3 == i % 3]
        total += sum(positives) / len(positives) / 9
    torch.testing.assert_close(nt_xent(*views, temperature=0.5), total)


@pytest.mark.parametrize("loss", [
    lambda a, b: nt_xent(a, b, temperature=0.5), lambda a, b: moco_loss(a, b, unit(8), 0.2),
    lambda a, b: byol_loss(a, b, b, a)])
def test_losses_are_of_float32_in_any_precision(loss):
    first, second = unit(4), unit(4, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(first, second)
    assert found.dtype == torch.float32
    assert found == loss(first, second)


@dataclasses.dataclass(frozen=True)
class Told(World):
    """One of several processes that knows what the others would send."""

    parts: tuple = ()

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        parts = list(self.parts)
        parts[self.rank] = part
        return torch.cat(parts)


def test_shares_of_a_batch_have_its_loss_and_its_gradient():
    """Without the factor the mean over four processes is a quarter of it, as in CP's release."""
    network, images = nn.Sequential(nn.Linear(5, 8), networks.Unit()), torch.rand(2, 8, 5)
    whole = nt_xent(*network(images.flatten(0, 1)).chunk(2), temperature=0.5)
    wanted = torch.autograd.grad(whole, network[0].weight)[0]
    found = []
    for rank in range(4):
        views = [network(view) for view in images]
        part = World(rank, 4).part(8)
        told_by_view = iter([Told(rank, 4, tuple(view.detach().chunk(4))) for view in views])
        # each call of `gather` is of one view
        world = Told(rank, 4)
        object.__setattr__(world, "gather", lambda own, told=told_by_view: next(told).gather(own))
        loss = nt_xent(*(view[part] for view in views), temperature=0.5, world=world)
        torch.testing.assert_close(loss, whole)
        found.append(torch.autograd.grad(loss, network[0].weight)[0])
    torch.testing.assert_close(sum(found) / 4, wanted)


# --- MoCo ------------------------------------------------------------------------------------


def test_moco_of_two_queries():
    """Logits [4, 0, -5] and [5, 5, 0]."""
    keys, queue = torch.tensor([[0.8, 0.6], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    losses = [moco_loss(FIRST[i:i + 1], keys[i:i + 1], queue, 0.2).item() for i in range(2)]
    assert losses == pytest.approx([0.018271, 0.696511], abs=1e-6)
    loss = moco_loss(FIRST, keys, queue, 0.2).item()
    assert loss == pytest.approx(0.357391, abs=1e-6)
    assert loss / 0.35 == pytest.approx(1.021116, abs=1e-5)     # CP's, times 0.2 / 0.07


def moco(**options) -> MoCo:
    return MoCo(tiny_network(), torch.Generator().manual_seed(2), channels=4, queue=12, **options)


def test_the_queue_starts_as_unit_vectors_and_is_filled_in_turn():
    method = moco()
    start = method.queue.clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(12))
    keys = [unit(4, 4, seed) for seed in (10, 11, 12)]
    for number, batch in enumerate(keys, 1):
        method.enqueue(batch)
        assert method.pointer == 4 * number % 12
    assert torch.equal(method.queue, torch.cat(keys))
    assert not (method.queue[:, None] == start).all(2).any()
    method.enqueue(keys[2])
    assert torch.equal(method.queue, torch.cat([keys[2], *keys[1:]]))
    with pytest.raises(ValueError, match="5 keys do not divide a queue of 12"):
        method.enqueue(unit(5, 4))


def test_a_queue_that_batches_do_not_fill_is_refused():
    contrastive.check_queue(4096, 512)
    with pytest.raises(ConfigError, match="a queue of 4096 keys is not filled by whole batches"):
        contrastive.check_queue(4096, 500)


def test_moco_reads_the_queue_before_its_keys_enter():
    method, (first, second) = moco(), two_views()
    queue = method.queue.clone()
    loss = method(first, second)
    assert not torch.equal(method.queue, queue)
    torch.testing.assert_close(
        loss, moco_loss(method.network(first), method.target(second), queue, 0.2))
    torch.testing.assert_close(method.queue[:4], method.target(second))
    loss.backward()                     # what it saved is not what was overwritten
    assert all(p.grad is None for p in method.target.parameters())


@pytest.mark.parametrize("make", [moco, lambda: BYOL(tiny_network(), nn.Linear(4, 4))])
def test_a_method_that_does_not_move_changes_no_weight(make):
    """But for running statistics, which are the networks' own."""
    method, views = make(), two_views()
    with torch.no_grad():
        next(method.network.parameters()).add_(1)
    before = {name: value.clone() for name, value in method.state_dict().items()
              if "running" not in name and "num_batches" not in name}
    method(*views, move=False)
    assert all(torch.equal(method.state_dict()[name], value) for name, value in before.items())
    method(*views)
    assert not torch.equal(method.state_dict()["target.1.weight"], before["target.1.weight"])


# --- BYOL ------------------------------------------------------------------------------------


def test_byol_of_known_angles():
    """cos 0.96 and 0; the original's loss is 4 + 4 times CP's."""
    p1, z2, p2, z1 = (torch.tensor([pair], requires_grad=True)
                      for pair in ([3.0, 4.0], [4.0, 3.0], [1.0, 0.0], [0.0, 2.0]))
    loss = byol_loss(p1, z2, p2, z1)
    assert loss.item() == pytest.approx(-0.48, abs=1e-6)
    original = sum(2 - 2 * F.cosine_similarity(p, z).item() for p, z in ((p1, z2), (p2, z1)))
    assert original == pytest.approx(4 + 4 * loss.item(), abs=1e-6)
    loss.backward()
    assert p1.grad is not None
    assert z2.grad is None
    assert z1.grad is None
    byol_loss(p1, z2, p2, z1, dual=True).backward()
    assert z2.grad.abs().sum() > 0


def gradients(method: nn.Module, **options) -> list[torch.Tensor | None]:
    """Of the loss with respect to both views; batch statistics would join all images."""
    views = [view.requires_grad_() for view in two_views()]
    method.eval()(*views, **options).backward()
    assert all(p.grad is None for p in method.target.parameters())
    return [view.grad for view in views]


def test_gradient_reaches_mocos_keys_only_where_asked():
    query, key = gradients(moco())
    assert query is not None
    assert key is None
    assert all(grad.abs().sum() > 0 for grad in gradients(moco(), dual=True))


def test_gradient_reaches_byols_targets_only_where_asked():
    """At the start the target is the network: through both the gradient is another."""
    one, both = (gradients(BYOL(tiny_network(), nn.Identity()), dual=dual)
                 for dual in (False, True))
    assert all(grad.abs().sum() > 0 for grad in one)
    assert not any(torch.allclose(a, b) for a, b in zip(one, both, strict=True))


def test_a_target_follows_parameters_alone():
    network, target = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
    with torch.no_grad():
        network.weight.fill_(2), target.weight.fill_(1)
        network.running_mean.fill_(5)
    contrastive.update_target(target, network, 0.99)
    assert target.weight.item() == pytest.approx(1.01)
    assert target.running_mean.item() == 0
    assert BYOL(network, nn.Identity()).momentum == pytest.approx(0.998001)     # 0.999 twice


# --- scales, rates, networks -----------------------------------------------------------------


def test_loss_scales_are_those_of_four_processes():
    assert LOSS_SCALE["simclr"] == pytest.approx(1.785714, abs=1e-6)
    assert LOSS_SCALE["moco"] == pytest.approx(2.857143, abs=1e-6)
    assert LOSS_SCALE["byol"] == 1


def test_the_rate_of_an_epoch():
    found = [contrastive.cosine_rate(0.5, epoch, 1000) for epoch in (1, 10, 500, 1000)]
    assert found == pytest.approx([0.499999, 0.499877, 0.25025, 0.0005], abs=1e-6)


def test_the_sizes_of_networks_and_heads():
    encoder, channels = networks.encoder("resnet18", 10, (32, 32))
    assert (count(encoder), channels) == (11_168_832, 512)
    assert count(networks.head(512)) == 328_320
    assert count(networks.byol_head(512)) == 3_158_272
    assert count(networks.byol_head(256)) == 2_109_696


@pytest.mark.parametrize("name", ["resnet18", "vgg11", "linear", "two_linear"])
def test_an_encoder_is_a_classifier_without_its_head(name):
    """Under the same names, so that a classifier can start from it."""
    encoder, channels = networks.encoder(name, 10, (8, 8), width=8)
    whole = classifier(name, 10, (8, 8), 8)
    names = {key for key in whole.state_dict() if not key.startswith("linear.")}
    assert encoder.state_dict().keys() == names
    found = networks.Projected(encoder, networks.head(channels))(torch.rand(4, 3, 8, 8))
    assert found.shape == (4, 128)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))


def test_convolutions_start_as_kaimings_by_fan_out():
    encoder, _ = networks.encoder("resnet18", 10, (32, 32), width=32)
    for convolution, channels in ((encoder.stem[0], 32), (encoder.blocks[7].conv2, 256)):
        wanted = math.sqrt(2 / (9 * channels))
        assert convolution.weight.std().item() == pytest.approx(wanted, rel=0.1)


def test_simclr_sees_both_views_in_one_batch():
    """So that batch statistics are of both."""
    network, (first, second) = tiny_network(), two_views()
    found = SimCLR(network)(first, second)
    z = network(torch.cat([first, second]))
    torch.testing.assert_close(found, nt_xent(z[:4], z[4:], temperature=0.5))
