#!/usr/bin/env bash
# Collects into one folder what a machine with a GPU and without a network needs beside Python and torch: sources, tests,
# benchmarks, and the wheels of what they import, in the tested versions. There: bash FOLDER/benchmarks/gpu.sh
#
#   benchmarks/gpu_pack.sh [FOLDER [PYTHON]]     FOLDER is build/gpu, PYTHON (of that machine) 3.12 if they are left out
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-build/gpu} python=${2:-3.12} most=60 # megabytes

# Everything that tests/gpu and benchmarks import, and what that needs, but torch and what torch itself needs. scipy is
# not here: it makes tests of significance alone. The last line is what torch needs too, in versions that may be older.
names=(
  accelerate beartype huggingface_hub jaxtyping math-verify numpy peft PyYAML rich safetensors tokenizers transformers typer
  annotated-doc antlr4-python3-runtime click hf-xet httpcore2 httpx2 anyio h11 idna truststore latex2sympy2_extended
  markdown-it-py mdurl packaging psutil Pygments regex shellingham tqdm wadler_lindig
  fastapi uvicorn starlette opentelemetry-api pydantic pydantic_core annotated-types typing-inspection
  pytest pytest-xdist execnet iniconfig pluggy
  filelock fsspec typing_extensions
)
wanted=()
for name in "${names[@]}"; do
  wanted+=("$(grep -m 1 "^$name==" constraints.txt)") || { echo "constraints.txt has no version of $name"; exit 1; }
done

test ! -e "$folder" || test -d "$folder/wheels" || { echo "$folder is there already and is no pack; name another"; exit 2; }
mkdir -p "$folder"
rm -rf "${folder:?}"/{wheels,src,tests,benchmarks,pyproject.toml,constraints.txt,COMMIT}
platforms=()
for number in 39 35 34 31 28 27 24 17; do platforms+=(--platform "manylinux_2_${number}_x86_64"); done
# Of one interpreter, but not of its ABI alone: many wheels are made for the stable one, or for any.
"${PYTHON:-python3}" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "$python" \
  "${platforms[@]}" --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d "$folder/wheels" "${wanted[@]}"
cp -r src tests benchmarks pyproject.toml constraints.txt "$folder"
find "$folder" -name __pycache__ -prune -exec rm -rf {} +
git describe --always --dirty >"$folder/COMMIT" 2>/dev/null || rm -f "$folder/COMMIT"

size=$(du -sm --apparent-size "$folder" | cut -f 1)
echo "$folder: $size MB, $(find "$folder/wheels" -name '*.whl' | wc -l) wheels for Python $python"
test "$size" -lt "$most" || { echo "that is not below $most MB; leave a package out"; exit 1; }
