"""How the page looks: a column of text, tables with rules as in print, on narrow screens and on paper too."""

STYLE = """
:root { color-scheme: light; --ink: #1a1a1a; --faint: #595959; --rule: #c8c8c8; --ground: #f5f5f3; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; color: var(--ink); background: #fff; overflow-wrap: break-word;
  font: 1rem/1.5 Charter, "Bitstream Charter", "Sitka Text", Cambria, "DejaVu Serif", serif; }
main { max-width: 48rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.3rem; line-height: 1.25; margin: 0 0 .75rem; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; }
section { margin-top: 3rem; padding-top: 1.25rem; border-top: 1px solid var(--rule); }
p { margin: .5rem 0; max-width: 42rem; text-wrap: pretty; }
section p { font-size: .9375rem; }
.lead { margin-bottom: 1rem; color: var(--faint); }
a { color: #004b87; }
nav { margin-top: 1.5rem; color: var(--faint); }
nav ol { margin: 0; padding-left: 1.5rem; }
dl, table, figcaption, nav, pre, h1, h2, h3 {
  font-family: system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .2rem 1rem; margin: 1rem 0;
  font-size: .875rem; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.wide:focus-visible { outline: 2px solid #004b87; outline-offset: 2px; }
table { border-collapse: collapse; border-bottom: 1.5px solid var(--ink); font-size: .8125rem; line-height: 1.35;
  font-variant-numeric: lining-nums tabular-nums; }
thead { border-top: 1.5px solid var(--ink); border-bottom: 1px solid var(--ink); }
th, td { padding: .2rem .6rem; text-align: left; font-weight: normal; vertical-align: baseline; white-space: pre; }
thead th { font-weight: 600; vertical-align: bottom; }
tr > :first-child { padding-left: 0; position: sticky; left: 0; background: #fff; }
tr > :last-child { padding-right: .1rem; }
.right { text-align: right; }
.inner { text-indent: 1rem; }
figure { margin: 1.5rem 0; }
img { display: block; width: 100%; max-width: 44rem; height: auto; background: #fff; }
figcaption { font-size: .8125rem; color: var(--faint); margin: .4rem 0; max-width: 44rem; }
pre { margin: .5rem 0; padding: .6rem .8rem; background: var(--ground); border-left: 3px solid var(--rule);
  font: .8125rem/1.45 ui-monospace, "SF Mono", Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
code { font: inherit; }
code span { display: inline-block; max-width: 100%; }
@media (max-width: 30rem) {
  main { padding: 1rem .75rem 2rem; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: .4rem; }
}
@media print {
  @page { margin: 18mm 16mm; }
  :root { --ink: #000; --faint: #000; --rule: #000; --ground: #fff; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  a { color: inherit; text-decoration: none; }
  .wide { overflow: visible; }
  table { font-size: 8pt; }
  pre { border: 1px solid #000; }
  figure, tr, pre, dl, .lead { break-inside: avoid; }
  img { width: auto; max-width: 100%; max-height: 190mm; }
  tr > :first-child { position: static; }
  thead { display: table-header-group; }
  h1, h2, h3, .lead, .table figcaption { break-after: avoid; }
  section { border-top: 0; padding-top: 0; }
}
"""
