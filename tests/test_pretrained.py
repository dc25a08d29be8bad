"""Fine-tuning: what the weights of a file become, what is frozen, and what is refused."""

import shutil

import pytest
import torch
from conftest import new_run, run_command, succeed, write_imageset
from safetensors.torch import load_file, save_file
from torchvision import models

import core.run
import evaluate
from core import pretrained as given
from core import records, training
from core.errors import UserError
from learners import pretrained
from models.classifiers import classifier
from scripts.tables import wording

SMALL = {"width": 2, "epochs": 1, "batch_size": 16, "crop_padding": 1}


def line(method: str, data, *more: str) -> list[str]:
    return [f"method={method}", f"data={data}", *(f"{method}.{k}={v}" for k, v in SMALL.items()),
            *more]


def tuning(data, weights, *more: str) -> list[str]:
    return line("pretrained", data, "pretrained.stem=auto", f"pretrained.weights={weights}", *more)


@pytest.fixture(scope="module")
def kept(few, tmp_path_factory):
    """40 digits, and the record of a network that was trained on them and kept."""
    place = tmp_path_factory.mktemp("kept")
    data = write_imageset(place / "digits", few.images[:40], few.labels[:40])
    return data, succeed(evaluate.main, *line("standard", data, "keep_network=true"),
                         f"out={place / 'record'}")


@pytest.fixture
def begun(monkeypatch, few, tmp_path):
    """Call it with keys: the network as training gets it, and the loss that it gets."""
    caught = {}

    def catch(network, *rest, loss):
        caught.update(network=network, loss=loss)
        return network, training.Result(0, 0, 1, [], 0, 1, 0, 0, 0)

    monkeypatch.setattr(pretrained, "train_classifier", catch)

    def begin(**keys):
        with new_run(tmp_path / "begun") as run:
            caught["saw"] = pretrained.fit(few, few, pretrained.Config(**keys), run).saw
        return caught

    return begin


def narrow(name: str, width: int) -> dict[str, torch.Tensor]:
    """Random weights by torchvision's names, of width / 64 of its channels."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in getattr(models, name)().state_dict().items()}
    torch.manual_seed(0)
    return {key: torch.rand([side if side < 64 or side == 1000 else side * width // 64
                             for side in shape]) if shape else torch.tensor(7)
            for key, shape in shapes.items()}


# --- weights ---------------------------------------------------------------------------------


def test_torchvisions_resnet18_answers_as_torchvisions(begun, tmp_path):
    torch.manual_seed(0)
    theirs = models.resnet18()
    images = torch.rand(4, 3, 32, 32)
    theirs(images)                          # so that the running statistics are not 0 and 1
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    network = begun(weights=str(tmp_path / "resnet18.pth"))["network"].eval()
    theirs.eval().fc = torch.nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(network.features(images), theirs(images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "vgg11_bn", "resnet50"])
def test_other_bodies_take_torchvisions_names(begun, tmp_path, name):
    """Also as densenet's file has them, and without the counts that the oldest files lack."""
    body = getattr(models, name)
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in body().state_dict().items()}
        network = classifier(name.removesuffix("_bn"), 10, (32, 32), 64, "imagenet")
    found = {given.renamed(key.replace("norm1", "norm.1").replace("conv2", "conv.2")
                                if "denselayer" in key else key, name): shape
             for key, shape in shapes.items() if not key.startswith(given.HEADS)}
    assert found == {key: value.shape for key, value in network.state_dict().items()
                     if not key.startswith("linear.")}


def test_a_files_weights_are_the_networks_but_for_a_new_head(begun, tmp_path):
    found = narrow("resnet18", 2)
    found = {key: value for key, value in found.items() if "num_batches" not in key}
    save_file(found, tmp_path / "narrow.safetensors")
    caught = begun(weights=str(tmp_path / "narrow.safetensors"), width=2)
    state = caught["network"].state_dict()
    for theirs, ours in (("conv1.weight", "stem.0.weight"),
                         ("bn1.running_var", "stem.1.running_var"),
                         ("layer1.1.bn2.bias", "blocks.1.bn2.bias"),
                         ("layer3.0.downsample.1.weight", "blocks.4.shortcut.1.weight"),
                         ("layer4.1.conv2.weight", "blocks.7.conv2.weight")):
        assert torch.equal(found[theirs], state[ours])
    assert state["linear.weight"].shape == (10, 16)
    assert caught["saw"] == ({"name": "ImageNet labels"},)


def test_a_kept_network_is_loaded_as_it_was_and_scores_alike(kept):
    """Its head too, of the same data: a step of rate 1e-30 leaves what was kept."""
    data, record = kept
    out = succeed(evaluate.main, *tuning(
        data, record, "keep_network=true", "pretrained.freeze=blocks", "pretrained.steps=1",
        "pretrained.learning_rate=1e-30"))
    one, two = (load_file(path / "network.safetensors") for path in (record, out))
    assert all(torch.equal(one[name], two[name]) for name in one)
    before, after = records.load(record), records.load(out)
    assert after["accuracy_last"] == before["accuracy_last"]
    [seen] = after["learner_saw"]
    assert seen["fingerprint"] == before["train"]["fingerprint"]
    assert wording.saw(after) == "the set itself, with their labels"


def test_what_a_network_saw_is_said_of_all_that_made_it(kept, few, tmp_path):
    """Of other data, with a new head, and on to what is tuned from that."""
    data, record = kept
    other = write_imageset(tmp_path / "six", few.images[:40], few.labels[:40] % 6, 6,
                           root={"data": "six"})
    first = succeed(evaluate.main, *tuning(other, record, "keep_network=true", f"test={other}"))
    assert load_file(first / "network.safetensors")["linear.weight"].shape == (6, 16)
    assert wording.saw(records.load(first)) == "other data: 40 images of digits, with their labels"
    second = records.load(succeed(evaluate.main, *tuning(data, first)))
    assert wording.saw(second) == ("other data: 40 images of six, with their labels; the set "
                                   "itself, with their labels")


def test_weights_that_saw_the_test_images_are_said(kept, few, tmp_path):
    data, record = kept
    unseen = run_command(evaluate.main, *tuning(data, record))
    assert "learned from images of the test set" not in unseen.stderr
    tested = succeed(evaluate.main, *line("standard", "digits", "split=test", "keep_network=true"))
    seen = run_command(evaluate.main, *tuning(data, tested))
    assert "accuracy on it is not of unseen images" in seen.stderr


def test_without_weights_a_fresh_network_is_trained_and_that_is_said(kept):
    data, _ = kept
    outcome = run_command(evaluate.main, *tuning(data, "null"))
    assert "pretrained.weights is null: a fresh network is trained" in outcome.stderr
    assert wording.saw(records.load(outcome.path)) == "nothing"


def test_the_weights_count_by_content(kept, tmp_path):
    data, record = kept
    (tmp_path / "moved").symlink_to(record)
    other = succeed(evaluate.main, *line("standard", data, "keep_network=true", "seed=1"))
    prints = [run_command(evaluate.main, *tuning(data, path), "--dry-run").stdout
              .split("# fingerprint ")[1][:16] for path in (record, tmp_path / "moved", other)]
    assert prints[0] == prints[1] != prints[2]


# --- freezing --------------------------------------------------------------------------------


def test_what_is_frozen_stays_bit_for_bit_and_the_rest_moves(kept):
    data, record = kept
    out = succeed(evaluate.main, *tuning(data, record, "keep_network=true",
                                         "pretrained.freeze=blocks.3"))
    before, after = (load_file(path / "network.safetensors") for path in (record, out))
    still = {name.rpartition(".")[0] for name in before if torch.equal(before[name], after[name])}
    moved = {name.rpartition(".")[0] for name in before if not torch.equal(before[name],
                                                                           after[name])}
    assert not still & moved                # batch norm's statistics as its weights
    assert {name.split(".")[1] for name in still if name.startswith("blocks")} == set("0123")
    assert {name.split(".")[1] for name in moved if name.startswith("blocks")} == set("4567")
    assert {"stem.0", "stem.1"} <= still
    assert "linear" in moved


@pytest.mark.parametrize(("name", "message"), [
    ("block.3", "pretrained.freeze: the network has no module 'block.3' with weights; did you"),
    ("linear", "pretrained.freeze: nothing is left to train behind 'linear'"),
    ("stem.2", "pretrained.freeze: the network has no module 'stem.2' with weights")])
def test_what_cannot_be_frozen_is_said(begun, name, message):
    with pytest.raises(UserError) as error:
        begun(width=2, freeze=name)
    assert str(error.value).startswith(message)


# --- resume, and mistakes --------------------------------------------------------------------


def test_it_goes_on_from_where_it_died_and_not_from_the_file(kept, tmp_path, monkeypatch):
    data, record = kept
    keys = tuning(data, record, "keep_network=true", "pretrained.freeze=blocks.0",
                  "pretrained.epochs=2")
    straight = succeed(evaluate.main, *keys, f"out={tmp_path / 'straight'}")
    accuracy, calls = training.accuracy, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return accuracy(*arguments)

    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(training, "accuracy", dies)
        assert run_command(evaluate.main, *keys, f"out={tmp_path / 'died'}").status == 130
    outcome = run_command(evaluate.main, *keys, f"out={tmp_path / 'died'}")
    assert "resuming" in outcome.stderr
    file = "network.safetensors"
    assert (straight / file).read_bytes() == (tmp_path / "died" / file).read_bytes()


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """A folder of weights, each with the mistake that its name says."""
    place, found = tmp_path_factory.mktemp("wrong"), narrow("resnet18", 2)
    others = {
        "whole": found, "module": torch.nn.Linear(2, 2), "nested": {"state": found},
        "ten": found | {"fc.weight": torch.rand(10, 16)}, "vgg": narrow("vgg11", 2),
        "nan": found | {"bn1.bias": torch.full((2,), torch.nan)},
        "half": {key: value.half() for key, value in found.items()}}
    for name, content in others.items():
        torch.save(content, place / f"{name}.pth")
    save_file(found, place / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        whole = (place / name).read_bytes()
        (place / name.replace("whole", "cut")).write_bytes(whole[:len(whole) // 2])
    with open(place / "large.pth", "wb") as file:
        file.truncate(given.MOST + 1)
    return place


@pytest.mark.parametrize(("weights", "message"), [
    ("cut.pth", "cut.pth is not a torch file of plain tensors"),
    ("cut.safetensors", "cut.safetensors is not a readable .safetensors file"),
    ("module.pth", "module.pth is not a torch file of plain tensors: it asks for "),
    ("nested.pth", "nested.pth holds more, or other things, than a network's tensors by name"),
    ("ten.pth", "ten.pth has no head of ImageNet's 1,000 classes"),
    ("nan.pth", "nan.pth: bn1.bias holds NaN or infinity"),
    ("half.pth", "half.pth holds the weights of another network: stem.0.weight is 2x3x7x7 float16, "
     "but in resnet18 of width 2, stem imagenet, it is 2x3x7x7 float32"),
    ("vgg.pth", "vgg.pth holds the weights of another network: stem.0.weight is not there, but in "
     "resnet18 of width 2"),
    ("large.pth", "large.pth: 1,073,741,825 bytes are too many for weights"),
])
def test_a_file_that_does_not_do_is_one_sentence_that_names_it(begun, wrong, weights, message):
    with pytest.raises(UserError) as error:
        begun(width=2, weights=str(wrong / weights))
    assert message in str(error.value)
    assert str(error.value).startswith(str(wrong))


def test_a_folder_that_does_not_do_is_one_sentence_that_names_it(kept, tmp_path):
    data, record = kept
    for weights, message, *more in (
            ("nowhere.pth", "pretrained.weights: nowhere.pth: no such file"),
            ("nowhere", "pretrained.weights: nowhere: no such folder"),
            (data, f"{data} is an ImageSet, not a record"),
            (record, f"{record} has width 2, but this training has 4: set pretrained.width",
             "pretrained.width=4"),
            (record, f"{record} has mean None, but this training has [0.5, 0.5, 0.5]: set "
             "pretrained.mean", "pretrained.mean=[0.5, 0.5, 0.5]", "pretrained.std=[1, 1, 1]"),
            (record, f"{record} holds the weights of another network: "
             "stem.0.weight is 2x3x3x3 float32, but in", "pretrained.stem=imagenet")):
        outcome = run_command(evaluate.main, *tuning(data, weights, *more), f"out={tmp_path / 'x'}")
        assert (outcome.error or "nothing").startswith(message)
    shutil.copytree(record, tmp_path / "edited")
    (tmp_path / "edited/network.safetensors").write_bytes(b"cut")
    outcome = run_command(evaluate.main, *tuning(data, tmp_path / "edited"))
    assert "edited/network.safetensors does not match its SHA-256" in outcome.error
    without = succeed(evaluate.main, *line("standard", data))
    outcome = run_command(evaluate.main, *tuning(data, without))
    assert outcome.error == (f"{without}/network.safetensors: no such file; evaluate again with "
                             "keep_network=true")
