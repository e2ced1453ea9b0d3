"""Pages of documentation as programs: their files are written, their commands and their Python run."""

import re
import shlex
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\S+\.(?:py|toml))(?: .*)?\n")
REST = re.compile(r"^\.\.\.$\n?", re.MULTILINE)  # what a page leaves out of an output


@dataclass(frozen=True)
class Block:
    """One block of code: its language, its text, and the file that its first line names, if any."""

    language: str
    text: str
    file: str | None = None


def blocks(page: Path) -> list[Block]:
    """The blocks of a page, in their order."""
    found = []
    for language, text in FENCE.findall(page.read_text()):
        name = FILE.match(text)
        found.append(Block(language, text, name[1] if name else None))
    return found


def commands(block: Block) -> list[tuple[list[str], str]]:
    """The commands of a console block, each with what it prints; lines that end with a backslash go on."""
    parts = re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    found = []
    for part in parts:
        line, _, shown = re.sub(r"\\\n\s*", "", part).partition("\n")
        found.append((shlex.split(line), shown))
    return found


def prints(output: str, shown: str) -> bool:
    """Whether an output has the form that is shown: nothing shown fits all, and a line `...` stands for any lines."""
    if not shown.strip():
        return True
    parts = [re.escape(f" {form(part)} ") if part.strip() else "" for part in REST.split(shown)]
    return re.fullmatch(".*".join(parts), f" {form(output)} ") is not None


def refreshed(shown: str, output: str) -> str:
    """What a page shows, of this output: each part between lines `...` becomes the lines that are most like it."""
    if prints(output, shown):
        return shown
    lines, parts, start = output.rstrip().splitlines(), REST.split(shown), 0
    found = []
    for place, part in enumerate(parts):
        if part.strip():
            first, last = most_alike(part, lines, start)
            first, last = (first if place else 0), (len(lines) if place == len(parts) - 1 else last)
            part, start = "\n".join(lines[first:last]) + "\n", last
        found.append(part)
    return "...\n".join(found)


def most_alike(part: str, lines: list[str], start: int) -> tuple[int, int]:
    """The lines from `start` on that are most like a part of about as many: the first, and that behind the last."""
    count = len(part.splitlines())
    windows = [
        (first, first + size)
        for first in range(start, len(lines))
        for size in (count, count + 1, count - 1)
        if 0 < size <= len(lines) - first
    ]

    def likeness(window: tuple[int, int]) -> float:
        text = form("\n".join(lines[slice(*window)]))
        return SequenceMatcher(None, form(part), text, autojunk=False).ratio()

    return max(windows, key=likeness, default=(start, len(lines)))


def form(text: str) -> str:
    """Output with its numbers masked: they differ between machines, and times between runs."""
    text = re.sub(r"SHA-256 \w+", "SHA-256", text)
    text = re.sub(r"[-+]?\d[\d,.]*(e[-+]?\d+)?", "#", text)
    text = re.sub(r"(?:> +)?# (?:ms|s|min|h|days?|[KMG]iB)\b", "# units", text)  # of forecasts, on a busy machine
    return re.sub(r"[\s─]+", " ", text).strip()
