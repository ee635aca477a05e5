"""Asks for each row of a CSV file, and writes the answers to another, with a journal to resume from.

python examples/csv_in_csv_out.py    (with OMNIGATE_BASE_URL and OMNIGATE_API_KEY set: see `omnigate gateway`)
"""

import tempfile
from pathlib import Path

from omnigate import Client

with tempfile.TemporaryDirectory() as name, Client() as client:
    folder = Path(name)
    (folder / "cities.csv").write_text("city,country\nOslo,Norway\nLima,Peru\nAccra,Ghana\n", "utf-8")
    prompt = "One fact about {city}, {country}"
    journal = folder / "answers.jsonl"
    batch = client.batch(folder / "cities.csv", prompt=prompt, model="gpt-4o-mini", journal=journal)
    print(batch.write(folder / "facts.csv").cost_usd, "USD")
    print((folder / "facts.csv").read_text("utf-8"))
