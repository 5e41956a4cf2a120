#!/usr/bin/env bash
# Make the environment, then run every test. Arguments go to pytest: bash scripts/test.sh tests/model -k golden
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-dev.txt
if [ "$#" -eq 0 ]; then
  set -- tests
fi
exec python -m pytest -n "${TEST_PROCESSES:-$CORES}" --dist loadfile "$@"
