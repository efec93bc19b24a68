#!/bin/sh
# Watch the runs of ./runs with what is installed on this machine: Prometheus, and Alertmanager where it is there too.
set -eu
cd "$(dirname "$0")/.."
if ! command -v prometheus >/dev/null 2>&1; then
    echo "There is no prometheus on the PATH. Debian: apt install prometheus prometheus-alertmanager. Or use Docker:"
    echo "docker compose --file monitoring/compose.yaml up"
    exit 2
fi
mkdir -p runs/targets
alertmanager=$(command -v prometheus-alertmanager || command -v alertmanager || true)
if [ -n "$alertmanager" ]; then
    "$alertmanager" --config.file=monitoring/alertmanager.yml --storage.path=runs/.alertmanager --log.level=warn \
        --cluster.listen-address= --web.listen-address=127.0.0.1:9093 &
    trap 'kill $! 2>/dev/null || true' EXIT
    echo "Alertmanager: http://127.0.0.1:9093"
fi
echo "Prometheus: http://127.0.0.1:9090   runs: http://127.0.0.1:9090/targets   alerts: http://127.0.0.1:9090/alerts"
prometheus --config.file=monitoring/prometheus.yml --storage.tsdb.path=runs/.prometheus --log.level=warn \
    --storage.tsdb.retention.time=90d --web.listen-address=127.0.0.1:9090
