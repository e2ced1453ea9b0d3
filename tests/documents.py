"""Pages of documentation as programs: their files are written, their commands and their Python run."""

import re
import shlex
from dataclasses import dataclass
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


def form(text: str) -> str:
    """Output with its numbers masked: they differ between machines, and times between runs."""
    text = re.sub(r"SHA-256 \w+", "SHA-256", text)
    text = re.sub(r"[-+]?\d[\d,.]*(e[-+]?\d+)?", "#", text)
    text = re.sub(r"(?:> +)?# (?:ms|s|min|h|days?|[KMG]iB)\b", "# units", text)  # of forecasts, on a busy machine
    return re.sub(r"[\s─]+", " ", text).strip()
