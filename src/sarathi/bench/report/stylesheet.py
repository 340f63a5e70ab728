"""How the page looks: on a screen of any width, in light and dark, and on paper."""

from __future__ import annotations

from sarathi.bench.report.colors import definitions

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.5;
  font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:72rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 1.25rem;letter-spacing:-.015em;text-wrap:balance}
h2{font-size:1.3rem;margin:3rem 0 1rem;letter-spacing:-.01em}
h3{font-size:1rem;margin:0 0 .15rem;overflow-wrap:anywhere}
p{margin:.25rem 0 .75rem;max-width:46rem}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
  font-size:.88em;overflow-wrap:anywhere}
.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:.35rem 1.25rem;margin:0;
  font-size:.92rem}
.facts dt{color:var(--muted)}
.facts dd{margin:0;overflow-wrap:anywhere}
.facts .who{color:var(--muted)}
.alert{border-left:4px solid var(--tone);background:var(--tone-surface);border-radius:6px;
  padding:.8rem 1rem;margin:0 0 1rem}
.alert.bad{--tone:var(--bad);--tone-surface:var(--bad-surface)}
.alert.warn{--tone:var(--warn);--tone-surface:var(--warn-surface)}
.alert strong{color:var(--tone)}
.alert ul{margin:.25rem 0 0;padding-left:1.1rem;font-size:.92rem;overflow-wrap:anywhere}
.card{background:var(--surface);border:1px solid var(--line);border-radius:10px;
  padding:1.1rem 1.25rem;margin:0 0 1.25rem;break-inside:avoid}
figure.card{margin-left:0;margin-right:0}
.card>p,figcaption p{color:var(--muted);font-size:.9rem}
.narrow{display:none}
svg{display:block;width:100%;height:auto;stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:inherit!important}
.scroll{overflow-x:auto;margin:0 -1.25rem;padding:0 1.25rem}
.scroll:focus-visible{outline:2px solid var(--label-0);outline-offset:-2px}
table{border-collapse:collapse;width:100%;font-size:.84rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem .5rem;text-align:right;vertical-align:top;white-space:nowrap}
th{color:var(--muted);font-weight:500;vertical-align:bottom}
thead tr:last-child th{border-bottom:1px solid var(--line)}
thead .group{text-align:center;border-bottom:1px solid var(--line);padding-bottom:.15rem}
thead tr:first-child th{padding-bottom:.15rem}
tbody tr+tr>*,tbody+tbody tr:first-child>*{border-top:1px solid var(--line)}
.prose{text-align:left}
td.prose{white-space:normal;min-width:6rem;max-width:24rem;overflow-wrap:break-word}
tbody th{text-align:left;vertical-align:top;color:var(--ink);font-weight:600;
  white-space:normal;min-width:8.5rem;max-width:16rem;overflow-wrap:anywhere;position:sticky;
  left:-1.25rem;background:var(--surface)}
tbody th,thead tr:first-child th:first-child{padding-left:0}
.by-label tbody th{min-width:4rem}
.label th{padding-top:.9rem}
.label th span{position:sticky;left:0}
.label+tr>*{border-top:none!important}
td small,th small{display:block;font-weight:400;color:var(--muted);font-size:.92em}
td.good{color:var(--good);font-weight:600}
td.bad{color:var(--bad);font-weight:600}
.chip{display:inline-block;width:.65rem;height:.65rem;border-radius:2px;margin-right:.45rem}
.terms dt{font-weight:600}
.terms dd{margin:0 0 .5rem;color:var(--muted)}
.terms{font-size:.92rem;margin:0}
@media (max-width:44rem){
  main{padding:1.5rem .75rem 3rem}
  h1{font-size:1.5rem}
  .card{padding:.9rem .9rem}
  .scroll{margin:0 -.9rem;padding:0 .9rem}
  tbody th{left:-.9rem}
  .wide{display:none}
  .narrow{display:block}
  .facts{grid-template-columns:minmax(0,1fr);gap:0}
  .facts dd{margin-bottom:.5rem}
}
@media print{
  body{background:none;font-size:10pt}
  main{max-width:none;padding:0}
  .card{border:none;padding:0}
  .wide{display:block}
  .narrow{display:none}
  .scroll{overflow:visible;margin:0;padding:0}
  table{font-size:6.5pt}
  td small{white-space:normal}
  th,td{padding:.2rem .25rem}
  tbody th{position:static}
  h2,h3{break-after:avoid}
}
"""


def stylesheet() -> str:
    light, dark = definitions(dark=False), definitions(dark=True)
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{_RULES}"
    )
