"""What the tests of bad input share: small runs, and what a refusal looks like."""

from pathlib import Path

from conftest import CONFIGS, Outcome

LSP = CONFIGS / "poisons" / "lsp.yaml"
GRAY = CONFIGS / "purifiers" / "gray.yaml"
DVAE = CONFIGS / "purifiers" / "dvae.yaml"
EM60 = CONFIGS / "learners" / "em60.yaml"
PATCH = "lsp.patch=4"
TINY_VAE = ["dvae.train.width=8", "dvae.train.latent_channels=4", "dvae.train.epochs=1",
            "dvae.train.batch_size=32"]
TINY_NET = ["standard.width=4", "standard.epochs=1", "standard.batch_size=32"]
OUT = Path("out")


def refused(outcome: Outcome, *words: str, out: Path = OUT) -> None:
    """The command ended with one sentence that holds the words, and left nothing at OUT."""
    assert outcome.status == 1, outcome
    assert outcome.stdout == ""
    assert "Traceback" not in outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if "error" in line.lower()]
    assert lines == outcome.stderr.splitlines()[-1:]        # the last line, and no other
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]
    assert not out.exists()
