"""Everything that is drawn: tables for a page and for a terminal, charts, trees, and the page itself."""
