# Sourced by demo.sh and test.sh: makes .venv, installs what a requirements file lists, in the versions of
# constraints.txt, and sets the variables that make small models fast on a CPU.
# Usage: source scripts/environment.sh requirements.txt
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT"
requirements="${1:-requirements.txt}"

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; raise SystemExit(sys.version_info < (3, 10))' 2>/dev/null; then
      echo "$candidate"
      return 0
    fi
  done
  echo "error: no Python 3.10 or newer found; install one, or name it: PYTHON=/path/to/python3 bash $0" >&2
  return 1
}

if [ ! -x .venv/bin/python ]; then
  python="$(find_python)"
  echo "== making .venv with $("$python" --version)"
  rm -rf .venv
  "$python" -m venv .venv || {
    echo "error: python -m venv failed; on Debian or Ubuntu: apt-get install python3-venv" >&2
    exit 1
  }
fi

# Installed once per content of the requirements files: an unchanged file costs nothing on the next run.
stamp=".venv/.installed-$(basename "$requirements" .txt)"
wanted="$(cat requirements.txt "$requirements" constraints.txt | cksum)"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "$wanted" ]; then
  echo "== installing $requirements"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" -c constraints.txt
  echo "$wanted" > "$stamp"
fi

CORES="$(env -u OMP_NUM_THREADS nproc)" # nproc itself obeys OMP_NUM_THREADS
export PATH="$ROOT/.venv/bin:$PATH"
# One thread per process: two one-thread processes beat one two-thread process, and OpenMP threads that wait by spinning
# slow every other process on the machine.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# glibc otherwise returns large temporaries to the system at every step, and page faults dominate the step time.
export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-17179869184}"
export MALLOC_TOP_PAD_="${MALLOC_TOP_PAD_:-67108864}"
export TOKENIZERS_PARALLELISM=false
