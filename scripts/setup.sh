#!/usr/bin/env bash
# Sets up everything that `make run` and `make test` need, from Python 3.11 alone: uv, .venv, the
# build of vLLM that fits this machine, Stacked itself and the demo base model. Never needs root.
#
#   STACKED_ENGINE   cpu or cuda; default: cuda where nvidia-smi works, else cpu
#   STACKED_DATA_DIR where the base goes; default: .stacked here
#   PYTHON           the interpreter to build .venv from
#
# Repeatable: a stamp in .venv says what it was built from. While that is unchanged this script
# does nothing and takes a fraction of a second; an interrupted set-up is begun again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

readonly base=smollm2-135m-instruct
readonly log=$root/.cache/setup.log
readonly stamp=$root/.venv/.stacked-setup
readonly unfinished=$root/.venv/.stacked-unfinished
export STACKED_DATA_DIR=${STACKED_DATA_DIR:-$root/.stacked}

# --- telling -------------------------------------------------------------------------------------

now() { printf '%s' "${EPOCHREALTIME/[.,]/}"; }                  # microseconds
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
  if [ -n "$running" ]; then
    kill "$running" 2>/dev/null || true
    wait "$running" 2>/dev/null || true
  fi
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
  if wait "$running"; then
    running=
    [ -z "$shown" ] || printf '\r\033[K'
    say "  ✓ $text  $(since "$began") s"
    return
  fi
  running=
  fail "$text did not work. $(cause "$from")" "The whole log: ${log#"$root"/}. Then run it again; it goes on where it can."
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
  else
    # Our own commands end in a sentence; so do most others.
    say "It said: $(grep -v '^[[:space:]]*$' <<<"$said" | tail -n 1)"
  fi
}

# --- what this machine has -----------------------------------------------------------------------

# Wanted and had, in one line each: the first difference makes a new set-up.
wanted() {
  local gpu=no
  ! command -v nvidia-smi >/dev/null || gpu=maybe
  sha256sum pyproject.toml scripts/setup.sh scripts/cpu-overrides.txt
  say "at $root engine ${STACKED_ENGINE:-auto} nvidia-smi $gpu python ${PYTHON:-any}"
}

ready() {
  [ -f "$stamp" ] && [ -x .venv/bin/python ] && [ -x .venv/bin/stacked ] &&
    [ ! -e "$unfinished" ] && [ "$(<"$stamp")" = "$(wanted)" ]
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

# --- the steps -----------------------------------------------------------------------------------

has_torch_backend() { "$1" pip install --help 2>/dev/null | grep -q -- --torch-backend; }

install_uv() { # PYTHON: into .cache/uv, whatever this machine's Python allows
  rm -rf .cache/uv
  if "$1" -m venv .cache/uv; then
    .cache/uv/bin/python -m pip install --disable-pip-version-check uv
  else # Debian without python3-venv; `--target` is allowed on an externally managed Python
    rm -rf .cache/uv
    "$1" -m pip install --disable-pip-version-check --target .cache/uv uv
  fi
}

find_uv() { # PYTHON
  if command -v uv >/dev/null && has_torch_backend uv; then
    return
  fi
  # Left by an earlier set-up, unless that was interrupted.
  if ! { [ -x .cache/uv/bin/uv ] && has_torch_backend .cache/uv/bin/uv; }; then
    step "installing uv (in .cache, for this clone only)" install_uv "$1"
  fi
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

torch_is_linked() { # is the CPU build of torch in one of the find-links directories?
  local place
  for place in ${UV_FIND_LINKS//,/ }; do
    compgen -G "$place/torch-*+cpu*.whl" >/dev/null && return
  done
  return 1
}

install_packages() { # ENGINE PYTHON
  local options=()
  if [ "$1" = cpu ]; then
    options=(--overrides scripts/cpu-overrides.txt)
    UV_FIND_LINKS=${UV_FIND_LINKS:-} torch_is_linked || options+=(--torch-backend cpu)
  else
    options=(--torch-backend auto)
  fi
  # exec: an interrupt then reaches uv itself
  exec uv pip install --python .venv/bin/python "${options[@]}" --editable ".[$1,prepare,train,dev]"
}

make_venv() { # PYTHON
  uv venv --clear --python "$1" .venv
  touch "$unfinished"
}

verify() { # that the packages import together, before anyone waits for an engine
  .venv/bin/stacked version
  .venv/bin/python -c 'import torch, transformers; print("torch", torch.__version__, "transformers", transformers.__version__)'
}

set_up() {
  local began python engine
  began=$(now)
  python=$(find_python)
  engine=$(find_engine)
  say "Setting up Stacked: $("$python" --version), the $engine build of vLLM."
  check_machine "$engine" "$python"
  find_uv "$python"
  pass_pip_settings_on "$python"
  # A finished .venv is brought up to date; anything else is begun again.
  if [ ! -f "$stamp" ] || [ -e "$unfinished" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    step "making .venv" make_venv "$python"
  fi
  touch "$unfinished"
  rm -f "$stamp"
  step "installing vLLM ($engine build) and the rest in .venv" install_packages "$engine"
  step "checking that the packages work together" verify
  wanted >"$stamp"
  rm -f "$unfinished"
  say "  set up in $(since "$began") s"
}

prepare_base() { # it shows its own progress, on the terminal where there is one
  .venv/bin/stacked prepare "$base" >/dev/null ||
    fail "the base model $base could not be prepared; the line above says why." "Run it again; what is done is kept."
}

main() {
  if ready && base_ready; then
    return
  fi
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
  main "$@"
fi
