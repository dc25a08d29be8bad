#!/usr/bin/env bash
# LE, Table 1 (SVHN): every attack undefended, squeezed (ISS), AVATAR and JCDP.
#   bash scripts/le_table1_svhn.sh [--quick] [--jobs N] [--dry-run] [key=value ...]
exec bash "$(dirname "$0")/table.sh" le_table1_svhn "$@"
