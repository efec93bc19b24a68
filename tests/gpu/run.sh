#!/bin/sh
# Runs all proofs that need a GPU, by one command:
#
#     sh tests/gpu/run.sh [wheels=FOLDER] [python=python3] [device=cuda] [out=FOLDER] [steps=20] [seconds=5] [limit=]
#
# The machine needs Python 3.11 or newer with torch 2.11 or newer and torchvision. What else is wanted comes from `wheels`,
# a folder of wheels for that Python, and then nothing is fetched; without it, it must be installed. Nothing is installed
# into that Python: wheels are unpacked into a temporary folder. `out`: where each script's output is left besides.
# `device=cpu` runs everything in small sizes without a GPU; by default what needs one is skipped by name where there is
# none. `steps`: trained after each checkpoint; `seconds`: of each measurement. `limit`: seconds after which nothing more
# is begun, and what is left is named as skipped: give it a minute or two less than the machine is there for. Exits 1
# where a claim fails, 2 for what is missing.
#
# The folder of wheels is made where there is internet, for the Python of the other machine:
#
#     sh tests/gpu/run.sh gather=FOLDER [version=3.12]
#
# It holds numba in no form, which is large and colours on CPUs alone.
set -u
here=$(cd "$(dirname "$0")/../.." && pwd)
wheels="" python=python3 device=cuda out="" steps=20 seconds=5 limit="" gather="" version=3.12
packages="timm safetensors xxhash simplejpeg hydra-core omegaconf<2.4 prometheus-client psutil pyyaml rich markdown-it-py mdurl
pygments urllib3 fsspec packaging pillow hjson msgpack einops py-cpuinfo ninja tqdm"
built="antlr4-python3-runtime==4.9.* deepspeed>=0.19"
for word in "$@"; do
    case $word in
    wheels=* | python=* | device=* | out=* | steps=* | seconds=* | limit=* | gather=* | version=*)
        name=${word%%=*} value=${word#*=}
        eval "$name=\$value"
        ;;
    *)
        echo "$word is not known: see the top of tests/gpu/run.sh." >&2
        exit 2
        ;;
    esac
done

if [ -n "$gather" ]; then
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --dest "$gather" $packages &&
        "$python" -m pip download --quiet --only-binary=:all: --python-version "$version" --dest "$gather" pydantic &&
        DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --wheel-dir "$gather" $built || exit 2
    du -sh "$gather"
    exit 0
fi

begun=$(date +%s)
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$place/site" "$wheels"/*.whl || exit 2
fi
export PYTHONUNBUFFERED=1
export PYTHONPATH="$place/site:$here${PYTHONPATH:+:$PYTHONPATH}"
modules="torch torchvision numpy PIL timm safetensors xxhash simplejpeg hydra omegaconf antlr4 prometheus_client psutil yaml rich urllib3"
# shellcheck disable=SC2016
missing=$("$python" -c 'import sys; from importlib.util import find_spec
print(*[name for name in sys.argv[1:] if not find_spec(name)])' $modules) || exit 2
if [ -n "$missing" ]; then
    echo "$python has no $missing: install it, or carry wheels along (wheels=FOLDER; see the top of tests/gpu/run.sh)." >&2
    exit 2
fi
"$python" -c 'import platform, torch
gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
print("Python", platform.python_version(), "torch", torch.__version__, "GPUs:", ", ".join(gpus) or "none")'

code=0
prove() {
    script=$1
    shift
    if [ -n "$out" ]; then
        mkdir -p "$out"
        "$python" "$here/tests/gpu/$script.py" --device "$device" "$@" >"$out/$script.txt" 2>&1 || code=1
        cat "$out/$script.txt"
    else
        "$python" "$here/tests/gpu/$script.py" --device "$device" "$@" || code=1
    fi
}
# the engines have two thirds of the time, speeds what is left
prove engines --steps "$steps" ${limit:+--seconds "$((limit * 2 / 3 + begun - $(date +%s)))"}
prove throughput --seconds "$seconds" ${limit:+--limit "$((limit + begun - $(date +%s)))"}
exit "$code"
