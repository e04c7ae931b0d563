"""Print the results on this hardware as a table in Markdown: python -m benchmarks.table [FILE]."""

import json
import sys
from pathlib import Path

from benchmarks.measure import results_file


def markdown(path: Path) -> str:
    """Return the table of a file of results."""
    lines = ["| work | compared with | result | command |", "|---|---|---|---|"]
    for content in json.loads(path.read_text(encoding="utf-8")).values():
        for row in content["rows"]:
            meaning = "times faster" if row["bar"]["at_least"] is not None else "times its time"
            low, high = row["spread"]
            result = f"{row['ratio']:.2f} ({low:.2f} to {high:.2f}) {meaning}"
            lines.append(f"| {row['work']} | {row['against']} | {result} | `{content['command']}` |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(Path(sys.argv[1]) if len(sys.argv) > 1 else results_file()))
