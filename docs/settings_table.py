"""Write the table of docs/settings.md from service/settings.py: `python -m docs.settings_table`."""

from __future__ import annotations

from pathlib import Path

from service.settings import Settings

PAGE = Path(__file__).with_name("settings.md")
START, END = "<!-- made by docs/settings_table.py -->\n", "<!-- end -->\n"


def table() -> str:
    """Every setting with its default and its description, in Markdown."""
    rows = ["| variable | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = {None: "–", "": "(empty)"}.get(field.default, f"`{field.default}`")
        what = (field.description or "").replace("|", r"\|")
        rows.append(f"| `ADAMIX_{name.upper()}` | {default} | {what} |")
    return "\n".join(rows) + "\n"


def with_table(page: str) -> str:
    """The page with today's table between its two marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
