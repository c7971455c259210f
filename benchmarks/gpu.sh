#!/usr/bin/env bash
# Everything that wants a GPU, in one call: installs what lies in wheels/ (see gpu_pack.sh; no network), runs the tests
# marked "gpu", measures speed, and writes results/gpu-speed.json after every part. Under ten minutes; --toy tries it on
# a CPU; --help lists the options. Python with torch is python3, or what PYTHON names.
set -euo pipefail
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu_run.py" "$@"
