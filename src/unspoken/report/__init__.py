"""Results for people: tables on a terminal, and one page that needs no network."""
