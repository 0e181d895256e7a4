"""The colours and the style sheet of a page: light and dark, for a phone and for a wide screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "ground": "#f6f7f9",
    "card": "#ffffff",
    "ink": "#1a2029",
    "soft": "#566070",
    "line": "#dfe3e8",
    "rest": "#e9ecf0",
    "ok": "#12703a",
    "ok-ground": "#e4f4ea",
    "bad": "#b3211a",
    "bad-ground": "#fdebe9",
    "warn": "#7d5100",
    "warn-ground": "#fdf3d8",
    "info": "#1257a8",
    "info-ground": "#e6f0fb",
    "effect": "#6a3ab2",
    "noise": "#6b7482",
    "h0": "#dbe9f6",
    "h1": "#b9d5ee",
    "h2": "#8fbce3",
    "h3": "#5f9dd3",
    "h4": "#387cbd",
    "h5": "#1f5b9c",
    "h6": "#123a6d",
}
"""The colours by name, as they are on a light screen."""

DARK: Mapping[str, str] = {
    "ground": "#0e1116",
    "card": "#161b22",
    "ink": "#e8edf3",
    "soft": "#9fabb9",
    "line": "#2b323c",
    "rest": "#262d37",
    "ok": "#58c982",
    "ok-ground": "#12281b",
    "bad": "#ff8078",
    "bad-ground": "#321618",
    "warn": "#e6b54a",
    "warn-ground": "#2c220d",
    "info": "#74b3fb",
    "info-ground": "#10243c",
    "effect": "#bb96f5",
    "noise": "#8f9bab",
    "h0": "#17324f",
    "h1": "#1c4874",
    "h2": "#23639d",
    "h3": "#3681c4",
    "h4": "#5ea2de",
    "h5": "#93c3ee",
    "h6": "#cfe5f9",
}
"""The same on a dark screen: there the larger value is the brighter one."""

ON: Mapping[str, tuple[str, ...]] = {
    "ground": ("ink", "soft", "info"),
    "card": ("ink", "soft", "ok", "bad", "warn", "info", "effect", "noise"),
    "ok-ground": ("ink", "ok", "soft", "effect"),
    "bad-ground": ("ink", "bad"),
    "warn-ground": ("ink", "warn"),
    "info-ground": ("ink", "info"),
    "rest": ("ink",),
}
"""Which colours text has on which ground; tests/report/page holds the contrast of each pair."""


def style() -> str:
    """Return the style sheet of a page."""
    return f"{_themes(':root')}{_PAGE}{_PICTURES}"


def fragment_style(place: str) -> str:
    """Return the style sheet of a fragment inside of another page; `place` selects it."""
    return _themes(place) + _FRAGMENT.replace("PLACE", place)


def picture_style() -> str:
    """Return the style sheet of a picture in a file of its own."""
    font = "svg{font:14px/1.5 system-ui,sans-serif}.card{fill:var(--card)}"
    return f"{_themes(':root')}{font}{_PICTURES}"


def _themes(place: str) -> str:
    light, dark = (
        "".join(f"--{name}:{value};" for name, value in colours.items())
        for colours in (LIGHT, DARK)
    )
    return f"{place}{{{light}}}@media (prefers-color-scheme:dark){{{place}{{{dark}}}}}"


_PAGE = """
:root{color-scheme:light dark}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,
"Segoe UI",Roboto,sans-serif;-webkit-text-size-adjust:100%;overflow-wrap:anywhere}
header,main,footer{max-width:920px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
footer{padding-bottom:40px;color:var(--soft);font-size:14px}
h1{font-size:22px;line-height:1.3;margin:0 0 2px;font-weight:650}
h2{font-size:18px;line-height:1.3;margin:0 0 12px;font-weight:650}
h3{font-size:15px;margin:20px 0 6px;font-weight:600}
p{margin:0 0 12px;max-width:72ch}
a{color:var(--info)}
a:focus-visible,summary:focus-visible{outline:2px solid var(--info);outline-offset:2px}
code{font:.88em/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;unicode-bidi:isolate}
nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:16px 0;padding:0;
font-size:14px}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:20px;
margin:0 0 16px}
section>:last-child{margin-bottom:0}
.verdict{border-width:1px 1px 1px 6px;margin-top:10px}
.verdict .word{font-size:13px;font-weight:700;letter-spacing:.06em;margin:0 0 2px}
.verdict .text{font-size:20px;line-height:1.35;font-weight:600;margin:0}
.verdict .text+*{margin-top:14px}
.verdict.ok{background:var(--ok-ground);border-color:var(--ok)}.verdict.ok .word{color:var(--ok)}
.verdict.bad{background:var(--bad-ground);border-color:var(--bad)}
.verdict.bad .word{color:var(--bad)}
.verdict.warn{background:var(--warn-ground);border-color:var(--warn)}
.verdict.warn .word{color:var(--warn)}
.verdict.info{background:var(--info-ground);border-color:var(--info)}
.verdict.info .word{color:var(--info)}
.verdict ul{margin:12px 0 0;padding-left:20px}
.note{color:var(--soft);font-size:14px}
.verdict .note{color:var(--ink)}
ul{margin:0 0 12px;padding-left:20px}
li{margin:0 0 6px}
table{border-collapse:collapse;width:100%;font-size:14px;margin:0 0 12px}
th,td{text-align:left;vertical-align:top;padding:7px 12px 7px 0;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:600;vertical-align:bottom}
thead th{overflow-wrap:normal}thead .number{white-space:normal}
tbody th{font-weight:500;min-width:76px}
tr>:last-child{padding-right:0}
.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
.bars th{width:38%}.bars .draw{vertical-align:middle}.bars .number{width:1%}
.bars tr:first-child>*{border-top:0}
.checks .draw{width:24%;min-width:76px}.checks .draw svg{margin-top:2px}
.checks small{display:block;color:var(--soft);font-size:13px}
.checks .group th{color:var(--soft);font-weight:600;padding-top:16px;border-top:0}
.checks .mark{width:1%;padding-right:8px;font-weight:700}
.mark.ok{color:var(--ok)}.mark.bad{color:var(--bad)}.mark.warn{color:var(--warn)}
.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 18px;margin:0 0 12px;
font-size:14px}
.facts dt{color:var(--soft)}.facts dd{margin:0}
.hash{color:var(--soft);display:block}
.samples{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:2px 16px;margin:0 0 18px;
font-size:14px}
.samples dt{color:var(--soft)}.samples dd{margin:0}
.samples .asked{grid-column:1/-1;font-weight:600;color:var(--ink)}
.tag{font-size:12px;font-weight:600;border-radius:20px;padding:1px 8px;margin-right:6px;
white-space:nowrap}
.tag.ok{background:var(--ok-ground);color:var(--ok)}
.tag.bad{background:var(--bad-ground);color:var(--bad)}
.tag.warn{background:var(--warn-ground);color:var(--warn)}
pre{white-space:pre-wrap;margin:0 0 12px;font-size:14px}
@media (max-width:560px){section{padding:16px 14px}header,main,footer{padding-left:12px;
padding-right:12px}header{padding-top:18px}.verdict .text{font-size:18px}
.facts{grid-template-columns:1fr;gap:0}.facts dd{margin-bottom:8px}
.checks .limit{display:none}th,td{padding-right:8px}}
@media print{body{background:none}section{break-inside:avoid}nav{display:none}}
"""

_PICTURES = """
svg{display:block;overflow:visible}
svg text{fill:var(--ink);font-size:13px}
.axis{margin:4px 0 12px}
.axis .ground{fill:var(--ok-ground)}.axis .border{stroke:var(--warn);stroke-width:1.5;
stroke-dasharray:4 3}
.axis .side,.axis .power{fill:var(--soft);font-size:12px}
.axis .tick{stroke:var(--line)}
.axis .name{font-weight:600}.axis .value{font-variant-numeric:tabular-nums}
.axis .name,.axis .value{paint-order:stroke;stroke:var(--card);stroke-width:2.5px}
.axis .bar{stroke-width:4;stroke-linecap:round;opacity:.45}
.axis .noise{stroke:var(--noise)}.axis .ok{stroke:var(--ok)}.axis .bad{stroke:var(--bad)}
.axis .limit{stroke:var(--warn)}.axis .effect{stroke:var(--effect)}
.axis .dot{stroke:var(--card);stroke-width:2}
.axis .dot.noise{fill:var(--noise)}.axis .dot.ok{fill:var(--ok)}.axis .dot.bad{fill:var(--bad)}
.axis .dot.limit{fill:var(--warn)}.axis .dot.effect{fill:var(--effect)}
.gauge .rest{fill:var(--rest)}.gauge{margin-top:6px}
.fill.info{fill:var(--info)}.fill.ok{fill:var(--ok)}.fill.bad{fill:var(--bad)}
.fill.limit{fill:var(--warn)}.fill.effect{fill:var(--effect)}.fill.noise{fill:var(--noise)}
.map{display:grid;grid-template-columns:minmax(0,max-content) minmax(55%,1fr);gap:2px 10px;
align-items:center;margin:0 0 10px}
.map .kind{overflow:hidden;text-overflow:ellipsis;white-space:nowrap;text-align:right}
.layers{display:flex;justify-content:space-between}.layers.each span{flex:1;text-align:center}
.map rect{stroke:var(--card);stroke-width:1}.map .fine rect{stroke:none;shape-rendering:crispEdges}
.map .fine .none{fill:var(--bad)}
.h0{fill:var(--h0)}.h1{fill:var(--h1)}.h2{fill:var(--h2)}.h3{fill:var(--h3)}.h4{fill:var(--h4)}
.h5{fill:var(--h5)}.h6{fill:var(--h6)}
rect.none{fill:var(--bad-ground);stroke:var(--bad);stroke-width:1}
.legend,.legend div{display:flex;align-items:center;gap:4px 8px}
.legend{flex-wrap:wrap;column-gap:18px;margin:0 0 12px}
@media (max-width:560px){.map{grid-template-columns:minmax(0,1fr);gap:1px}
.map .kind{text-align:left;margin-top:5px}}
"""

_FRAGMENT = """
PLACE{font:14px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--card);
border:1px solid var(--line);border-left:5px solid var(--mark);border-radius:8px;padding:10px 14px;
max-width:760px}
PLACE p{margin:0 0 4px}PLACE .word{font-weight:700;color:var(--mark)}PLACE .note{color:var(--soft)}
"""
