#!/bin/sh
# Debian packages that some tests use; where they cannot be installed, those tests are skipped by name.
set -u
missing() { ! command -v "$1" >/dev/null 2>&1; }
wanted=""
if missing promtool; then wanted="$wanted prometheus"; fi
if missing prometheus-alertmanager; then wanted="$wanted prometheus-alertmanager"; fi
if missing slurmctld || missing slurmd || missing sbatch || missing munged; then
    wanted="$wanted slurmctld slurmd slurm-client munge"
fi
if [ ! -d /usr/share/datasets/fashion-mnist ]; then wanted="$wanted dataset-fashion-mnist"; fi
if [ -n "$wanted" ] && [ "$(id -u)" = 0 ] && [ -f /etc/debian_version ]; then
    echo "installing$wanted for the tests"
    export DEBIAN_FRONTEND=noninteractive
    # only the programs are wanted: no service must start; a policy of the machine's own, or a link to one, stays
    policy=${DIST_SSL_POLICY:-/usr/sbin/policy-rc.d}
    if (set -C && printf '#!/bin/sh\nexit 101\n' >"$policy") 2>/dev/null; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 129' HUP
        trap 'exit 130' INT
        trap 'exit 143' TERM
        chmod +x "$policy"
    fi
    # shellcheck disable=SC2086
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends $wanted; } >/dev/null 2>&1 ||
        echo "they could not be installed: their tests will be skipped"
fi
