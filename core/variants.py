"""What a method's YAML holds beside its values: `for:` a data set, and named `presets:`.

    method: em
    data: cifar10
    em: {epsilon: 8/255, ...}
    for:                            # what the source changes on another data set
      cifar100: {em: {train_steps: 20, weight_decay: 5e-5}}
      svhn: {}                      # nothing, but the values are meant for it too
    presets:                        # preset=eps16
      eps16: {em: {epsilon: 16/255}, for: {digits: {em: {epsilon: 32/255}}}}

The section of the data set goes over the file's values, the preset over that, and the preset's own
`for:` over the preset. What is typed as key=value goes over everything.
"""

from core import config
from core.config import Node
from core.errors import UserError


def choose(tree: Node, preset: str | None, data_set: str | None) -> Node:
    """The values of a YAML for a preset (None: without) and a data set (None: it has no name).

    Raises UserError for a preset that the YAML does not have.
    """
    values, sets, presets = split(tree)
    chosen = over(values, sets.get(data_set))
    if preset is None:
        return chosen
    if preset not in presets:
        raise UserError(f"preset: there is no '{preset}' here"
                        + (config.suggest(preset, list(presets), "presets") or "; this YAML has "
                           "no presets"))
    changes, its_sets, _ = split(presets[preset], preset)
    return over(over(chosen, changes), its_sets.get(data_set))


def meant_for(tree: Node, preset: str | None) -> list[str]:
    """The data sets that a YAML, or this preset of it, has values for; none if they are the same
    for every one."""
    values, sets, presets = split(tree)
    own = values.value.get("data")
    if preset in presets:
        sets = sets | split(presets[preset], preset)[1]
    return list(dict.fromkeys([*([own.value] if own else []), *sets])) if sets else []


def new_form(yamls: list[str]) -> str:
    """For a YAML that is not there: '; write em.yaml data=cifar100' where it was one of its own
    before, or the nearest name beside it."""
    for path in map(config.as_path, yamls):
        name, _, word = path.stem.rpartition("_")
        while name and not path.exists():
            whole = path.with_name(f"{name}.yaml")
            if whole.exists():
                _, sets, presets = split(config.read_file(whole))
                keys = {**dict.fromkeys(sets, "data"), **dict.fromkeys(presets, "preset")}
                if word in keys:
                    return f"; write {whole} {keys[word]}={word}"
                choices = [f"{key}={choice}" for choice, key in keys.items()]
                return f"; {whole} takes {', '.join(choices)}" if choices else ""
            name, _, more = name.rpartition("_")
            word = f"{more}_{word}"
        if not path.exists():
            beside = sorted(other.name for other in path.parent.glob("*.yaml"))
            near = config.suggest(path.name, beside)
            return near if "did you mean" in near else ""
    return ""


def split(tree: Node, name: str = "the file") -> tuple[Node, dict[str, Node], dict[str, Node]]:
    """(values, `for:`, `presets:`). Raises UserError where one is no section."""
    found = dict(section(tree, name))
    parts = [section(found.pop(key, Node({}, tree.origin)), key) for key in ("for", "presets")]
    return Node(found, tree.origin), *parts


def section(node: Node, key: str) -> dict[str, Node]:
    """What it holds; an empty one (`svhn:`) nothing."""
    if node.value == "":
        return {}
    if not isinstance(node.value, dict):
        raise UserError(f"{node.origin}: {key}: expected `name: ...` lines")
    return node.value


def over(values: Node, changes: Node | None) -> Node:
    """`changes` merged over `values`."""
    if changes is None or not section(changes, "for"):
        return values
    return config.merge(values, changes)
