"""A hook of the site: it adds the files outside docs/ that pages link to, at their place in the repository.

So a link such as ../results/validation/README.md leads to the same text on the site as in a clone. Pages that are added
may link to further files. The files of docs/ are at the top of the site.
"""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()([^)#:\s]+)(?=[)#])")


def targets(page: Path, text: str) -> dict[str, Path]:
    """The files of the repository that links of a page name, by the links' text."""
    found = {link: Path(os.path.normpath(page.parent / link)) for link in LINK.findall(text)}
    return {link: path for link, path in found.items() if path.is_file() and path.is_relative_to(ROOT)}


def place(path: Path) -> str:
    """The path of a file in the site's source."""
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


def on_files(files, config):
    pages = [Path(file.abs_src_path) for file in files.documentation_pages()]
    for page in pages:  # which grows on the way
        for path in targets(page, page.read_text("utf-8")).values():
            if path.is_relative_to(DOCS) or files.get_file_from_path(place(path)):
                continue
            files.append(File.generated(config, place(path), abs_src_path=str(path)))
            if path.suffix == ".md":
                pages.append(path)
    return files


def on_page_markdown(markdown, page, config, files):
    here = Path(page.file.abs_src_path)
    named = targets(here, markdown)
    folder = os.path.dirname(page.file.src_uri)

    def moved(link: re.Match) -> str:
        path = named.get(link[0])
        return link[0] if path is None else os.path.relpath(place(path), folder or ".")

    return LINK.sub(moved, markdown)
