#!/bin/sh
# Watch the runs of ./runs with what is installed on this machine: Prometheus, and Alertmanager and Grafana where they are
# there too. All of them end with this script.
set -eu
cd "$(dirname "$0")/.."
if ! command -v prometheus >/dev/null 2>&1; then
    echo "There is no prometheus on the PATH. Debian: apt install prometheus prometheus-alertmanager. Or use Docker:"
    echo "docker compose --file monitoring/compose.yaml up"
    exit 2
fi
mkdir -p runs/targets
started=""
trap 'trap - EXIT; [ -z "$started" ] || kill $started 2>/dev/null || true; wait' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
alertmanager=$(command -v prometheus-alertmanager || command -v alertmanager || true)
if [ -n "$alertmanager" ]; then
    "$alertmanager" --config.file=monitoring/alertmanager.yml --storage.path=runs/.alertmanager --log.level=warn \
        --cluster.listen-address= --web.listen-address=127.0.0.1:9093 &
    started="$started $!"
    echo "Alertmanager: http://127.0.0.1:9093"
else
    echo "Alertmanager: not on the PATH, so alerts are sent nowhere"
fi
if command -v grafana >/dev/null 2>&1; then
    home=$(dirname "$(dirname "$(readlink -f "$(command -v grafana)")")") # of an unpacked archive
    [ -e "$home/conf/defaults.ini" ] || home=/usr/share/grafana           # of a package
    DIST_SSL_MONITORING=$PWD/monitoring GF_PATHS_PROVISIONING=$PWD/monitoring/grafana GF_PATHS_DATA=$PWD/runs/.grafana \
        GF_PATHS_LOGS=$PWD/runs/.grafana/log GF_PATHS_PLUGINS=$PWD/runs/.grafana/plugins GF_LOG_LEVEL=warn \
        GF_SERVER_HTTP_ADDR=127.0.0.1 GF_AUTH_ANONYMOUS_ENABLED=true GF_AUTH_ANONYMOUS_ORG_ROLE=Viewer \
        GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH=$PWD/monitoring/dashboards/fleet.json \
        grafana server --homepath="$home" &
    started="$started $!"
    echo "Grafana: http://127.0.0.1:3000"
else
    echo "Grafana: not on the PATH; without it: python launch/report.py run=runs/NAME"
fi
echo "Prometheus: http://127.0.0.1:9090   runs: http://127.0.0.1:9090/targets   alerts: http://127.0.0.1:9090/alerts"
prometheus --config.file=monitoring/prometheus.yml --storage.tsdb.path=runs/.prometheus --log.level=warn \
    --storage.tsdb.retention.time=90d --scrape.discovery-reload-interval=1s --web.listen-address=127.0.0.1:9090 &
started="$started $!"
wait $! || {
    code=$?
    echo "Prometheus has ended with an error. Where port 9090 is taken, another Prometheus runs on this machine: end it, or let"
    echo "it read $PWD/runs/targets (monitoring/README.md says how)."
    exit $code
}
