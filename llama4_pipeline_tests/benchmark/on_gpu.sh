#!/usr/bin/env bash
# on_gpu.sh WHEELS RECORD [WORDS]: measures on this machine's GPU, without network, and writes one JSON file.
# Wheels in the directory WHEELS, whole or cut (make gpu-wheels), are installed beside what this Python has already.
# WORDS are those of `python -m llama4_pipeline_tests.benchmark`; --device cpu tries the script without a GPU.
set -euo pipefail
wheels=$1 record=$2
shift 2
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [ -d "$wheels" ]; then
	site=$(mktemp -d)
	trap 'rm -rf "$site"' EXIT
	mkdir "$site/wheels" "$site/packages"
	for file in "$wheels"/*.whl; do [ ! -e "$file" ] || ln -s "$(realpath "$file")" "$site/wheels/"; done
	for first in "$wheels"/*.whl.00; do
		[ ! -e "$first" ] || cat "${first%.00}".?? > "$site/wheels/$(basename "${first%.00}")"
	done
	"$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site/packages" "$site"/wheels/*.whl
	export PYTHONPATH=$PYTHONPATH:$site/packages
fi
"$python" -m llama4_pipeline_tests.benchmark --device cuda --record "$record" --scratch "${TMPDIR:-/tmp}/llama4-benchmark" "$@"
