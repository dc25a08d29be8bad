"""The five commands in one table: all that scripts, tables and errors need to know of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command: it reads a set, calls a method of its room and writes one artefact."""

    name: str                       # in a table's YAML
    words: tuple[str, ...]          # after `python`
    room: str                       # where its methods are: poisons/, purifiers/ or learners/
    kind: str                       # of artefact: it goes to runs/<kind>/ unless out= says
    own_keys: tuple[str, ...] = ()  # keys at the top level that no other command takes
    trains: bool = False            # reads `train:` of the method's section, and nothing else of it
    takes_clean: bool = False       # not the set that the step before it in a table left
    shared: bool = False            # several processes (torchrun) can do its work together

    @property
    def line(self) -> str:
        """As it is typed: 'python -m poisons'."""
        return " ".join(["python", *self.words])


COMMANDS = {command.name: command for command in (
    Command("poison", ("-m", "poisons"), "poisons", "poisons",
            own_keys=("fraction", "craft_on"), takes_clean=True, shared=True),
    Command("train_vae", ("train_vae.py",), "purifiers", "checkpoints", trains=True),
    Command("train_ddpm", ("train_ddpm.py",), "purifiers", "checkpoints", trains=True,
            takes_clean=True, shared=True),
    Command("purify", ("purify.py",), "purifiers", "purified", own_keys=("checkpoint",),
            shared=True),
    Command("evaluate", ("evaluate.py",), "learners", "records",
            own_keys=("protocol", "clean", "clean_split", "keep_network"), shared=True),
)}
OWNER = {key: command for command in COMMANDS.values() for key in command.own_keys}
