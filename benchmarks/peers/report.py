"""What the turns came to: medians, ratios, and both as text, Markdown and JSON."""

import statistics
from dataclasses import dataclass, field

LEGEND = "Medians. Latency: from when a task was due to its result. Publisher to sum: CPU milliseconds a task."
ROLES = ("publisher", "workers", "rabbitmq", "redis")


@dataclass
class Row:
    """One contestant or one of Taskyard's modes, with all its turns."""

    key: str
    title: str
    settings: str
    is_taskyard: bool = False
    turns: list = field(default_factory=list)
    failures: list = field(default_factory=list)

    def numbers(self, name):
        return [value for turn in self.turns if (value := getattr(turn, name)) is not None]

    def median(self, name):
        numbers = self.numbers(name)
        return statistics.median(numbers) if numbers else None

    def cpu(self, role):
        numbers = [value for turn in self.turns if (value := turn.cpu_s_per_1000.get(role)) is not None]
        return statistics.median(numbers) if numbers else None

    def cpu_sum(self):
        numbers = [value for role in ROLES if (value := self.cpu(role)) is not None]
        return sum(numbers) if numbers else None

    def as_json(self):
        names = ("tasks_per_s", "p50_ms", "p99_ms", "busy_cores")
        return {
            "key": self.key,
            "title": self.title,
            "settings": self.settings,
            "median": {name: self.median(name) for name in names}
            | {"cpu_s_per_1000": {role: self.cpu(role) for role in ROLES}},
            "turns": [turn.as_json() for turn in self.turns],
            "failures": self.failures,
        }


def ratios(rows):
    """Taskyard's median rate by each peer's: mode to peer to ratio."""
    peers = [row for row in rows if not row.is_taskyard and row.turns]
    modes = [row for row in rows if row.is_taskyard and row.turns]
    return {
        mode.key: {peer.key: mode.median("tasks_per_s") / peer.median("tasks_per_s") for peer in peers}
        for mode in modes
    }


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


def main_table(rows):
    heads = ["", "tasks/s", "least–most", "p50 ms", "p99 ms", "publisher", "workers", "RabbitMQ", "Redis", "sum"]
    lines = []
    for row in rows:
        rates = row.numbers("tasks_per_s")
        span = f"{number(min(rates))}–{number(max(rates))}" if rates else "-"
        times = [number(row.median(name), 1) for name in ("p50_ms", "p99_ms")]
        # Seconds for 1,000 tasks are milliseconds for one.
        cpu = [number(value, 3) for value in (*map(row.cpu, ROLES), row.cpu_sum())]
        lines.append([row.title, number(row.median("tasks_per_s")), span, *times, *cpu])
    return heads, lines


def ratio_table(rows):
    found = ratios(rows)
    peers = [row for row in rows if not row.is_taskyard and row.turns]
    heads = ["times as many tasks/s as", *(peer.title for peer in peers)]
    lines = [[row.title, *(f"{found[row.key][peer.key]:.2f}" for peer in peers)] for row in rows if row.key in found]
    return heads, lines


def as_text(heads, lines):
    widths = [max(len(line[column]) for line in (heads, *lines)) for column in range(len(heads))]

    def padded(line):
        first, *others = line
        right = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        return "  ".join((first.ljust(widths[0]), *right)).rstrip()

    return "\n".join(map(padded, (heads, *lines)))


def as_markdown(heads, lines):
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in (heads, rule, *lines))


def printed(rows, conditions, markdown):
    """Everything for a person to read. `conditions` are sentences on what it was measured with."""
    table = as_markdown if markdown else as_text
    parts = [table(*main_table(rows))]
    if any(row.is_taskyard and row.turns for row in rows):
        parts.append(table(*ratio_table(rows)))
    chosen = [f"{row.title}: {row.settings}." for row in rows if row.settings]
    sentences = [LEGEND, *conditions, *chosen]
    parts.append("\n".join(f"- {sentence}" if markdown else sentence for sentence in sentences))
    return "\n\n".join(parts)
