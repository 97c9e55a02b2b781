# Sourced by the other scripts. `prepare EXTRAS` makes .venv, installs this project into it with those extras, and puts it
# first in PATH. What is there already is left alone until pyproject.toml, the interpreter or this folder's place changes.
#
# PYTHON names the interpreter to use, 3.11 or newer; otherwise the first of those below that runs.

version_of() { # Prints 3.x, or fails: a command may exist and yet not run (pyenv's shims), be too old or lack venv.
  "$1" -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 11); print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

find_python() { # 3.12 and 3.11 first: those are tested, and every dependency has wheels for them.
  local candidate
  for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3.14 python3}; do
    if version_of "$candidate" >/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: ${PYTHON:-python3} does not run, is older than 3.11 or lacks venv: install Python 3.11 or newer, or set PYTHON" >&2
  return 1
}

prepare() {
  local extras="$1" python state version stamp=.venv/installed
  cd "$(dirname "${BASH_SOURCE[0]}")/.."

  version="$(version_of .venv/bin/python || true)"
  if [ -z "$version" ] || { [ -n "${PYTHON:-}" ] && [ "$(version_of "$PYTHON" || true)" != "$version" ]; }; then
    python="$(find_python)"
    version="$(version_of "$python")"
    echo "making .venv with Python $version"
    "$python" -m venv --clear .venv
  fi

  state="Python $version, $PWD, pyproject.toml $(cksum <pyproject.toml)"
  # With dev, all that a plain install needs is there too.
  if ! grep -sqxF -e "[dev] $state" -e "[$extras] $state" "$stamp"; then
    echo "installing into .venv: mrcnn_jax${extras:+[$extras]}"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --editable ".${extras:+[$extras]}"
    echo "[$extras] $state" >>"$stamp"
  fi

  export PATH="$PWD/.venv/bin:$PATH"
  # Compiled programs are kept for the next start.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
}
