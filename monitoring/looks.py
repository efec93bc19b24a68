"""How each kind of panel looks in Grafana, through the types of grafana-foundation-sdk."""

import string
from collections.abc import Callable
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, stat, table, timeseries, xychart
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import common as shared
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import prometheus as asked
from grafana_foundation_sdk.models import xychart as xy

from monitoring.layout import Panel
from monitoring.queries import TABLES, Query

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
ANSWERS = {"0": {"text": "lost", "color": "red", "index": 0}, "1": {"text": "yes", "color": "green", "index": 1}}
LINK = {"title": "Show this run", "url": "/d/dist-ssl-run?var-run=${__value.text:percentencode}"}


def drawn(panel: Panel, number: int, place: model.GridPos) -> model.Panel:
    """Return a panel in Grafana's model, with its number and its place on the grid."""
    helps = [f"{m.help} (`{m.name}`)" for m in TABLES if m.panel == panel.title and not panel.own]
    made = LOOKS[panel.kind](panel).build()
    made.id_val, made.grid_pos, made.title, made.datasource = number, place, panel.title, SOURCE
    made.description = panel.help or "\n\n".join(helps)
    made.targets = [
        target(ref, query, panel.kind) for ref, query in zip(string.ascii_uppercase, panel.queries, strict=False)
    ]
    return made


def target(ref: str, query: Query, kind: str) -> asked.Dataquery:
    """Return a query; that of a table is asked for now, all others over the time that is shown."""
    made = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(ref).datasource(SOURCE)
    made = made.editor_mode(asked.QueryEditorMode.CODE)
    made = made.instant() if kind == "table" else made.range()
    return made.format(
        asked.PromQueryFormat.TABLE if kind in ("table", "xychart") else asked.PromQueryFormat.TIME_SERIES
    ).build()


def thresholds(limits: tuple[float, float] | None) -> build.ThresholdsConfig:
    """Return the colours of a panel's limits."""
    steps = [model.Threshold(None, "green")]
    if limits:
        (yellow, red), rising = limits, limits[0] <= limits[1]
        bounds = [("yellow", yellow), ("red", red)] if rising else [("yellow", red), ("green", yellow)]
        steps = [model.Threshold(None, "green" if rising else "red")]
        steps += [model.Threshold(value, color) for color, value in bounds]
    return build.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)


def legend() -> common.VizLegendOptions:
    """Return a legend below the panel."""
    made = common.VizLegendOptions().display_mode(shared.LegendDisplayMode.LIST)
    return made.placement(shared.LegendPlacement.BOTTOM).show_legend(True)


def tooltip(mode: shared.TooltipDisplayMode) -> common.VizTooltipOptions:
    """Return what is shown under the pointer."""
    return common.VizTooltipOptions().mode(mode).sort(shared.SortOrder.DESCENDING)


def curves(panel: Panel) -> timeseries.Panel:
    """Return how a panel draws curves over time, with its limits as dashed lines."""
    stacking = shared.StackingMode.NORMAL if panel.stacked else shared.StackingMode.NONE
    style = shared.GraphThresholdsStyleMode.DASHED if panel.limits else shared.GraphThresholdsStyleMode.OFF
    return (
        timeseries.Panel()
        .unit(panel.queries[0].unit)
        .line_width(1)
        .fill_opacity(40 if panel.stacked else 0)
        .show_points(shared.VisibilityMode.AUTO)
        .stacking(common.StackingConfig().mode(stacking).group("A"))
        .thresholds(thresholds(panel.limits))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(style))
        .legend(legend())
        .tooltip(tooltip(shared.TooltipDisplayMode.MULTI))
    )


def numbers(panel: Panel) -> stat.Panel:
    """Return how a panel shows the newest value of every series, in the colours of its limits."""
    return (
        stat.Panel()
        .unit(panel.queries[0].unit)
        .thresholds(thresholds(panel.limits))
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
        .color_mode(shared.BigValueColorMode.VALUE if panel.limits else shared.BigValueColorMode.NONE)
        .graph_mode(shared.BigValueGraphMode.NONE)
        .text_mode(shared.BigValueTextMode.AUTO)
    )


def transformed(panel: Panel, *further: model.DataTransformerConfig) -> list[model.DataTransformerConfig]:
    """Return the steps that merge the queries into one table of runs, whose columns have the names of the legends."""
    names = {f"Value #{ref}": query.legend for ref, query in zip(string.ascii_uppercase, panel.queries, strict=False)}
    places = {name: place for place, name in enumerate(["run", "end", *names])}
    organized = {"excludeByName": {"Time": True}, "indexByName": places, "renameByName": names}
    merged = [step("merge", {}), step("organize", organized)]
    return [*merged, *further]


def step(name: str, options: dict[str, Any]) -> model.DataTransformerConfig:
    """Return one transformation."""
    return model.DataTransformerConfig(id_val=name, options=options)


def columns(panel: Panel) -> table.Panel:
    """Return how a panel merges its queries into a table with one line per run."""
    made = (
        table.Panel()
        .show_header(True)
        .align(shared.FieldTextAlignment.AUTO)
        .inspect(False)
        .transformations(transformed(panel))
    )
    made = made.sort_by([common.TableSortByFieldState().display_name("run").desc(False)])
    for query in panel.queries:
        made = made.override_by_name(query.legend, [model.DynamicConfigValue("unit", query.unit)])
    made = made.override_by_name(
        "Answers", [model.DynamicConfigValue("mappings", [{"type": "value", "options": ANSWERS}])]
    )
    return made.override_by_name("run", [model.DynamicConfigValue("links", [LINK])])


def crossed(panel: Panel) -> xychart.Panel:
    """Return how a panel draws its second query over its first: one frame for each run, joined by time."""
    x, y = panel.queries
    parted = step("partitionByValues", {"fields": ["run"], "keepFields": False, "naming": {"asLabels": True}})
    matcher = xychart.MatcherConfig().id("byName").options(x.legend)
    named = model.DynamicConfigValue("displayName", "${__field.labels.run}")
    return (
        xychart.Panel()
        .show(xy.XYShowMode.LINES)
        .line_width(1)
        .transformations(transformed(panel, parted))
        .mapping(xy.SeriesMapping.AUTO)
        .series([xychart.XYSeriesConfig().x(xychart.XychartXYSeriesConfigX().matcher(matcher))])
        .override_by_name(x.legend, [model.DynamicConfigValue("unit", x.unit)])
        .override_by_name(y.legend, [model.DynamicConfigValue("unit", y.unit), named])
        .legend(legend())
        .tooltip(tooltip(shared.TooltipDisplayMode.SINGLE))
    )


LOOKS: dict[str, Callable[[Panel], timeseries.Panel | stat.Panel | table.Panel | xychart.Panel]] = {
    "timeseries": curves,
    "stat": numbers,
    "table": columns,
    "xychart": crossed,
}
"""How each kind of panel is drawn."""
