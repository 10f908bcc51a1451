#!/usr/bin/env bash
# Run the suite with the oldest versions that pyproject.toml admits, in a fresh environment:
#     bash tests/oldest/run.sh [arguments for pytest]
# PYTHON names the interpreter; without it, python3.10 where there is one, else python3. Nothing is
# left of the environment, whatever happens.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# A name on the path may be a stand-in for an interpreter that is not there: it has to run.
python=${PYTHON:-python3.10}
if [ -z "${PYTHON:-}" ] && ! python3.10 -c '' 2>/dev/null; then
    python=python3
    echo "there is no python3.10, the oldest that pyproject.toml admits; taking python3" >&2
fi
"$python" --version
unset PYTHONPATH PYTHONHOME
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"$python" -m venv "$environment"
"$environment/bin/python" -m pip install -c tests/oldest/constraints.txt -e '.[hf,sweep,test]'
"$environment/bin/python" -m pytest "$@"
