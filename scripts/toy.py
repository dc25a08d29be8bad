"""Draw why purification works: the toy problem of D-VAE's theory."""

from start import start

start("scripts.pictures.toy")
