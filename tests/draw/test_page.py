"""Blocks as HTML: texts are escaped, numbers stay beside their units."""

from __future__ import annotations

from markupsafe import Markup

from unspoken.draw.page import to_html
from unspoken.draw.section import Figure, Panel, Paragraph
from unspoken.draw.table import Cell, Column, Table, number, text


def test_a_text_is_escaped_and_a_number_stays_beside_its_unit() -> None:
    assert to_html([Paragraph("a <b>: 5 % of 3 points, p = 0.03, p < 0.1", "caption")]) == (
        '<p class="caption">a &lt;b&gt;: 5\u00a0% of 3\u00a0points, p\u00a0=\u00a00.03, p\u00a0&lt;\u00a00.1</p>\n'
    )


def test_a_table_has_its_groups_heads_and_rows() -> None:
    columns = [Column("System"), Column("Rate|95 %", group="Rates"), Column("p", group="Rates", classes="num wide")]
    cell = Cell(0.5, interval=(0.25, 0.75), note="sure", drawing=Markup("<svg/>"), classes="strong")
    table = Table(columns=columns, rows=[[text("<one>"), cell, number(None)]], title="rates", classes="narrow")
    html = to_html([table])
    assert "\n\n" not in html and "> <" not in html
    assert '<td></td><th scope="colgroup" colspan="2">Rates</th></tr>' in html
    assert '<th scope="col" class="num first">Rate<small>95\u00a0%</small></th>' in html
    # What p means is in the glossary.
    assert '<th scope="col" class="num wide"><abbr title="How often chance alone' in html
    assert '<th scope="row" class=" ">&lt;one&gt;</th>' in html
    assert '<td class="num first strong">50.00\u00a0%<small>25.00 – 75.00; sure</small><svg/></td>' in html
    assert '<td class="num wide muted">–</td>' in html


def test_panels_are_as_wide_as_their_drawings_and_stand_side_by_side_unless_asked() -> None:
    drawing = Markup("<svg/>")
    html = to_html([Figure([Panel(drawing=drawing)])])
    assert '<div class="panels">' in html and '<div class="panel "><svg/></div>' in html
    html = to_html([Figure([Panel(drawing=drawing, width=12.4)], strip=True)])
    assert '<div class="panels strip">' in html and '<div class="panel " style="width:12px"><svg/></div>' in html
