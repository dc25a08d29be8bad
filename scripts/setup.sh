#!/usr/bin/env bash
# The environment of the other scripts, which source this: .venv, or the virtual environment that is active, with the packages of
# requirements.txt. By itself it installs them:
#     bash scripts/setup.sh
# INSTALL=no takes the Python and packages that are there, offline, as --dry-run and --status do. DEV=1 also installs what the tests need.
[ "${BASH_SOURCE[0]}" != "$0" ] || cd "$(dirname "$0")/.."
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "scripts/$(basename "$0")"; exit ;; esac
case " $* " in *" --dry-run "* | *" --status "*) INSTALL=no ;; esac
case $- in *i*) ;; *) export UNLEARNABLE_STARTER=$$ ;; esac     # its commands end with a script that is killed
if [ "${INSTALL:-yes}" = no ]; then
  if [ -z "${VIRTUAL_ENV:-}" ] && [ -x .venv/bin/python ]; then source .venv/bin/activate; fi
  command -v python >/dev/null || python() { python3 "$@"; }
  return
fi
if [ -z "${VIRTUAL_ENV:-}" ]; then
  if [ ! -x .venv/bin/python ]; then
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
      { echo "error: Python 3.11 or later is needed, and python3 is $(python3 -V 2>&1)" >&2; exit 1; }
    echo "making .venv" >&2
    python3 -m venv .venv
  fi
  source .venv/bin/activate
fi
requirements=requirements.txt
[ -z "${DEV:-}" ] || requirements=requirements-dev.txt
stamp=$VIRTUAL_ENV/.installed-$(cat requirements*.txt | cksum | cut -d' ' -f1)-${DEV:-0}
if [ ! -e "$stamp" ]; then
  echo "installing $requirements (PyTorch's CUDA build is several GB; INSTALL=no takes what is there)" >&2
  pip install -q --disable-pip-version-check -r $requirements || exit
  touch "$stamp"
fi
