"""Draw why purification works: the toy problem of D-VAE's theory."""

from start import start

if __name__ == "__main__":           # and not again in a process that it spawns
    start("scripts.pictures.toy")
