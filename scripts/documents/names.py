"""How the methods' names are written, everywhere but in commands and YAMLs."""

NAMES = {
    "em": "EM", "em_classwise": "EM, class-wise", "rem": "REM", "rem_lite": "REM, lite",
    "sem": "SEM", "tap": "TAP", "hypo": "HYPO", "sep": "SEP", "pil": "PIL", "lsp": "LSP",
    "ar": "AR", "ops": "OPS", "cuda": "CUDA", "uc": "UC", "gue": "GUE", "dc": "DC",
    "dune": "DUNE", "aue": "AUE", "aap": "AAP", "mi_ue": "MI-UE",
    "cp": "CP", "tue": "TUE", "cp_c": "CP-C", "cp_s": "CP-S",
    "reuse": "re-used p_hat",
    "random_signs": "random signs",
    "gray": "grey scale", "jpeg": "JPEG", "bdr": "BDR", "dvae": "D-VAE", "vae": "VAE",
    "ae": "AE", "ddpm": "DDPM", "avatar": "AVATAR", "jcdp": "JCDP",
    "ortho": "orthogonal projection", "coin": "COIN", "sharpen_lowpass": "RSK + FF",
    "advcl_reduced": "AdvCL, reduced",
    "ueraser": "UEraser", "ueraser_max": "UEraser, max",
    "iss_best": "best of these (an oracle)",
}


def name_of(label: str) -> str:
    """A row or column of a table, whose first word may be a method: 'jcdp strength=1' -> 'JCDP,
    strength 1'."""
    first, *rest = label.replace(",", "").split() or [label]
    words = [NAMES.get(first, first), *rest]
    return " ".join(words[:1]) + "".join(f", {word.replace('=', ' ')}" if "=" in word
                                         else f" {word}" for word in words[1:])
