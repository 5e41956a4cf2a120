#!/usr/bin/env bash
# Test Qwen3-VL with the lowest and the newest transformers that it is made for, each in a folder of its own that goes
# afterwards. Arguments go to pytest: bash scripts/test_transformers_range.sh tests/model -k "not golden"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements-dev.txt
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
if [ "$#" -eq 0 ]; then
  set -- tests/model/test_qwen*.py
fi
grep -viE '^(transformers|huggingface[-_]hub|tokenizers)=' constraints.txt > "$folder/constraints.txt"
for version in '==5.4.0' '<5.40'; do
  python -m pip install --quiet --disable-pip-version-check --target "$folder/$version" -c "$folder/constraints.txt" \
    "transformers$version"
  export PYTHONPATH="$folder/$version"
  python -c 'import transformers; print("== transformers", transformers.__version__)'
  python -m pytest -q -p no:cacheprovider "$@"
done
