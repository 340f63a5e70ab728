"""The page as HTML; Jinja escapes whatever is put into it."""

from __future__ import annotations

TEMPLATE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ stylesheet }}</style>
</head>
<body>
<main>
{%- macro figure(one) %}
<figure class="card" aria-label="{{ one.drawing.title }}">
<figcaption><h3>{{ one.drawing.title }}</h3><p>{{ one.drawing.caption }}</p></figcaption>
<div role="img" aria-label="{{ one.drawing.alternative }}">
<div class="wide">{{ safe(one.wide) }}</div>
<div class="narrow">{{ safe(one.narrow) }}</div>
</div>
</figure>
{%- endmacro %}
{%- macro cell(one) %}
{%- if one.label is not none %}<span class="chip" style="background:var({{ variable(one.label) }})">
{#- -#}
</span>{% endif %}{{ one.text }}{% if one.note %}<small>{{ one.note }}</small>{% endif %}
{%- endmacro %}
{%- macro head(column, rows) %}
<th scope="col"{% if rows > 1 %} rowspan="{{ rows }}"{% endif %}
{%- if column.prose %} class="prose"{% endif %}>{{ column.head }}</th>
{%- endmacro %}
{%- macro table(one) %}
<section class="card"><h3>{{ one.title }}</h3><p>{{ one.caption }}</p>
<div class="scroll" tabindex="0" role="region" aria-label="{{ one.title }}">
<table{% if one.by_label %} class="by-label"{% endif %}>
<thead>
{%- set grouped = one.columns | selectattr("group") | list %}
<tr>
{%- for group, columns in one.groups %}
{%- if group %}<th scope="colgroup" colspan="{{ columns | length }}" class="group">{{ group }}</th>
{%- else %}{% for column in columns %}{{ head(column, 2 if grouped else 1) }}{% endfor %}{% endif %}
{%- endfor %}</tr>
{%- if grouped %}<tr>{% for column in grouped %}{{ head(column, 1) }}{% endfor %}</tr>{% endif %}
</thead>
{%- for label, rows in one.sections %}
<tbody>
{%- if label is not none %}
<tr class="label"><th scope="rowgroup" colspan="{{ one.columns | length - 1 }}">
{#- -#}
<span>{{ cell(label) }}</span></th></tr>
{%- endif %}
{%- for row in rows %}
<tr><th scope="row">{{ cell(row[0]) }}</th>
{%- for one in row[1:] %}<td class="{{ one.tone }}{{ ' prose' if one.prose }}">{{ cell(one) }}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody>
{%- endfor %}
</table>
</div>
</section>
{%- endmacro %}
<h1>{{ title }}</h1>
{%- for alert in alerts %}
<div class="alert {{ alert.tone }}" role="note"><strong>{{ alert.head }}</strong>
<ul>{% for item in alert.texts %}<li>{{ item }}</li>{% endfor %}</ul></div>
{%- endfor %}
{%- if facts %}
<dl class="facts">
{%- for fact in facts %}
<dt>{{ fact.name }}</dt><dd>
{%- for who, value in fact.values %}
<div>{% if who %}<span class="who">{{ who }}:</span> {% endif %}
{%- if fact.code %}<code>{{ value }}</code>{% else %}{{ value }}{% endif %}</div>
{%- endfor %}</dd>
{%- endfor %}
</dl>
{%- endif %}
{%- for section in sections %}
<h2>{{ section.title }}</h2>
{%- for text in section.texts %}
<p>{{ text }}</p>
{%- endfor %}
{%- for one in section.first %}{{ table(one) }}{% endfor %}
{%- for one in section.figures %}{{ figure(one) }}{% endfor %}
{%- for one in section.tables %}{{ table(one) }}{% endfor %}
{%- if section.notes %}
<ul>
{%- for note in section.notes %}
<li>{{ note }}</li>
{%- endfor %}
</ul>
{%- endif %}
{%- endfor %}
<h2>Terms</h2>
<dl class="terms">
{%- for term, meaning in terms.items() %}
<dt>{{ term }}</dt><dd>{{ meaning }}</dd>
{%- endfor %}
</dl>
</main>
</body>
</html>
"""
