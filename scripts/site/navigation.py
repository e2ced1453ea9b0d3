"""A hook of the site: a pattern in `nav` stands for the pages that fit it and are named nowhere else.

They come in the order in which the first page links to them, others behind by title. A page that fits several patterns
goes to the longest.
"""

import re
from fnmatch import fnmatch
from pathlib import Path


def names(entries: list) -> list[str]:
    """The paths and patterns that a nav holds, at any depth."""
    found = []
    for entry in entries:
        for inner in entry.values() if isinstance(entry, dict) else [entry]:
            found += names(inner) if isinstance(inner, list) else [inner]
    return found


def title(path: str) -> str:
    """The first heading of a page."""
    heading = re.search(r"^# (.*)$", Path(path).read_text("utf-8"), re.MULTILINE)
    return heading[1] if heading else path


def fits(page: str, pattern: str) -> bool:
    """Whether a path fits a pattern, folder by folder."""
    parts, wanted = page.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatch, parts, wanted))


def filled(entries: list, pages: list[str], named: set[str]) -> list:
    """The entries with the pages, which keep their order, in place of patterns."""
    found = []
    for entry in entries:
        if isinstance(entry, dict):
            inner = {
                key: filled(value, pages, named) if isinstance(value, list) else value for key, value in entry.items()
            }
            found += [inner] if all(inner.values()) else []  # a section without pages is none
        elif "*" in entry:
            patterns = sorted((name for name in named if "*" in name), key=len, reverse=True)
            fit = [page for page in pages if page not in named and fits(page, entry)]
            found += [page for page in fit if entry == next(name for name in patterns if fits(page, name))]
        else:
            found.append(entry)
    return found


def on_files(files, config):
    titles = {file.src_uri: title(file.abs_src_path) for file in files.documentation_pages()}
    linked = re.findall(r"\]\(([^)#]+)", Path(config.docs_dir, "index.md").read_text("utf-8"))
    places = {page: place for place, page in reversed(list(enumerate(linked)))}
    pages = sorted(titles, key=lambda page: (places.get(page, len(linked)), titles[page]))
    config.nav = filled(config.nav, pages, set(names(config.nav)))
    return files
