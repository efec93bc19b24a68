"""How the report looks: colours for light and dark, one column on a narrow screen, nothing that has to be loaded."""

PALETTE = ("#3f7fd0", "#d9634a", "#3d9a5b", "#b07aa1", "#d9a23b", "#4fa8a8", "#8c6d4f", "#7d8590")
COLOURS = "".join(
    f".c{n} {{ stroke: {c}; }} circle.c{n} {{ fill: {c}; }} .f{n} {{ fill: {c}; background: {c}; }}"
    for n, c in enumerate(PALETTE)
)
"""The classes of curves (`c0`) and of areas (`f0`)."""
STYLE = """
:root { --paper: #fff; --ink: #1f2328; --faint: #57606a; --line: #d8dee4; --card: #f6f8fa; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --ink: #e6edf3; --faint: #9198a1; --line: #30363d; --card: #151b23; }
}
body { margin: 0 auto; max-width: 1240px; padding: 24px 16px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 16px; overflow-wrap: anywhere; } h2 { font-size: 17px; margin: 28px 0 8px; }
p { margin: 8px 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 500; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 11em; }
.cards { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.card { background: var(--card); border-radius: 8px; padding: 10px 12px; min-width: 0; }
svg { width: 100%; max-width: 760px; display: block; }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .title { font-size: 14px; font-weight: 600; } svg .axis { fill: var(--faint); font-size: 11px; }
svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
.grid { stroke: var(--line); } polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.legend { margin: 6px 0; } .item { display: inline-block; margin-right: 14px; overflow-wrap: anywhere; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
input { margin: 0 4px 12px 0; } label { margin-right: 14px; }
#hours:checked ~ .by-samples, #samples:checked ~ .by-hours { display: none; }
@media (max-width: 600px) {
  svg text { font-size: 17px; } svg .title { font-size: 20px; } svg .axis { font-size: 16px; }
  .runs tbody, .runs td { display: block; } .runs tr:first-child { display: none; }
  .runs tr { display: grid; grid-template-columns: 1fr 1fr; gap: 0 20px; padding: 8px 0;
    border-bottom: 1px solid var(--line); }
  .runs td { display: flex; justify-content: space-between; gap: 8px; border: 0; padding: 1px 0; white-space: normal;
    text-align: right; }
  .runs td::before { content: attr(data-heading); color: var(--faint); text-align: left; }
  .runs td:first-child, .runs td:last-child { grid-column: 1 / -1; }
  .runs td:first-child { display: block; font-weight: 600; text-align: left; }
}
"""
