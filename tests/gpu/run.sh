#!/bin/sh
# Runs all proofs and measurements that need a GPU, by one command:
#
#     sh tests/gpu/run.sh [part=a,b,c,d,e,f,g] [device=cuda] [wheels=FOLDER] [out=FOLDER] [limit=540] [python=python3]
#                         [only=NET] [bars=no] [steps=20]
#
# The parts, each in processes of its own and within its own time; one that is over it is killed, and the next one runs
# whatever the last one did. Every row is printed as soon as it is known, and a table of bars stands at the end:
#
#     a  versions, numba, pinned memory, 15 s          e  from JPEG to weight update, 120 s
#     b  the GPU's numbers are the CPU's, 90 s         f  a run of launch/slurm.py, killed and resumed, 70 s
#     c  what a step costs, beside a plain loop, 130 s g  engines read what others wrote, 35 s
#     d  compiled blocks, 80 s
#
# `part`: some of them alone, in this order. c, d and e may be limited to nets, and b to scripts: c:resnet50,
# e:resnet50+vit_base, b:norms. `only`: the nets of those that name none. `limit`: seconds of the whole, the unpacking of
# wheels included; the times above are shares of it, and what a part does not need, those after it get. `bars=yes`: of c
# only what bars need and the plain loop. `out`: what each part has printed, as a.txt, b.txt, ..., and all rows,
# measurements and bars in results.json. `steps`: that engines train after each checkpoint. `device=cpu` runs everything
# in small sizes without a GPU and judges no bar. Exits 1 where a claim does not hold or a bar is missed, 2 for a wrong
# word or a Python without torch.
#
# The machine needs Python 3.11 or newer with torch 2.11 or newer and torchvision. What else is needed comes from
# `wheels`, a folder of wheels for that Python: those whose package is not installed are unpacked into a temporary folder,
# and nothing is fetched. The folder is made where there is internet, for the Python of the other machine:
#
#     sh tests/gpu/run.sh gather=FOLDER [version=3.12] [deepspeed=no]
#
# It holds numba in no form, which is large. deepspeed=yes: DeepSpeed too, which is built here.
set -u
start=$(date +%s)
here=$(cd "$(dirname "$0")/../.." && pwd)
part="" wheels="" python=python3 device=cuda out="" steps=20 limit=540 gather="" only="" bars=no version=3.12 deepspeed=no
packages="timm safetensors xxhash simplejpeg hydra-core omegaconf<2.4 submitit cloudpickle typing-extensions webdataset
braceexpand prometheus-client psutil pyyaml rich markdown-it-py mdurl pygments urllib3 fsspec packaging pillow"
built="antlr4-python3-runtime==4.9.*"
for word in "$@"; do
    case $word in
    part=* | wheels=* | python=* | device=* | out=* | steps=* | limit=* | only=* | bars=* | gather=* | version=* | deepspeed=*)
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
    tags="--only-binary=:all: --python-version $version --implementation cp"
    for number in 17 24 27 28 31 34; do tags="$tags --platform manylinux_2_${number}_x86_64"; done
    tags="$tags --platform manylinux2014_x86_64"
    if [ "$deepspeed" = yes ]; then
        packages="$packages hjson msgpack einops py-cpuinfo ninja tqdm pydantic pydantic-core annotated-types typing-inspection"
        built="$built deepspeed>=0.19"
    fi
    # shellcheck disable=SC2086
    "$python" -m pip download --quiet --no-deps $tags --dest "$gather" $packages &&
        DS_BUILD_OPS=0 "$python" -m pip wheel --quiet --no-deps --wheel-dir "$gather" $built || exit 2
    du -sh "$gather"
    exit 0
fi

place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
export PYTHONUNBUFFERED=1
export PYTHONPATH="$place/site:$here${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "$wheels" ]; then
    # what is installed stays as it is
    # shellcheck disable=SC2016
    "$python" -c 'import sys
from importlib.metadata import PackageNotFoundError, version
for wheel in sys.argv[1:]:
    try:
        version(wheel.rpartition("/")[2].partition("-")[0])
    except PackageNotFoundError:
        print(wheel)' "$wheels"/*.whl >"$place/needed" || exit 2
    install="$python -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target $place/site"
    # shellcheck disable=SC2086,SC2046
    if [ -s "$place/needed" ] && ! $install $(cat "$place/needed"); then
        while read -r wheel; do # one that does not fit must not keep the others away
            $install --upgrade "$wheel" || echo "$wheel could not be unpacked: rows that need it will fail." >&2
        done <"$place/needed"
    fi
fi
"$python" "$here/tests/gpu/run.py" --check ${part:+--part "$part"} ${only:+--only "$only"} || exit 2
gpus=$("$python" -c 'import torch, torchvision; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)') || {
    echo "$python has no torch and torchvision that load: see the top of tests/gpu/run.sh." >&2
    exit 2
}
if [ "$device" = cuda ] && [ "$gpus" = 0 ]; then
    echo "SKIPPED tests/gpu/run.sh: no GPU is here (device=cpu runs small sizes without one)"
    exit 0
fi
"$python" "$here/tests/gpu/run.py" --device "$device" --limit "$limit" --steps "$steps" \
    --spent $(($(date +%s) - start)) ${part:+--part "$part"} ${only:+--only "$only"} \
    $(test "$bars" != yes || echo --bars) ${out:+--out "$out"}
