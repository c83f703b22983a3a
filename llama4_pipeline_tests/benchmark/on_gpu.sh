#!/usr/bin/env bash
# on_gpu.sh WHEELS WORDS: runs `python WORDS` on this machine, without network.
# Wheels in the directory WHEELS, whole or cut (make gpu-wheels), are installed beside what this Python has already.
set -euo pipefail
wheels=$1
shift
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
"$python" "$@"
