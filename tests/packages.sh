#!/bin/sh
# Debian packages that some tests use; where they cannot be installed, those tests are skipped by name.
set -u
missing() { ! command -v "$1" >/dev/null 2>&1; }
if missing promtool && [ "$(id -u)" = 0 ] && [ -f /etc/debian_version ]; then
    echo "installing prometheus (for promtool)"
    export DEBIAN_FRONTEND=noninteractive
    # only the tools are wanted: the service must not start
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends prometheus; } >/dev/null 2>&1 ||
        echo "prometheus could not be installed: its tests will be skipped"
    rm -f /usr/sbin/policy-rc.d
fi
