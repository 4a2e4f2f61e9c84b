"""Reading documents: title and text of a text, Markdown, HTML or PDF file, told apart by its ending."""

from __future__ import annotations

import codecs
import logging
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

DAMAGE = (  # what damaged files make pypdf raise, beside errors of its own
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    NotImplementedError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
BLOCKS = """address article aside blockquote caption dd div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr li main ol
p pre section table tr ul"""  # HTML elements that stand on lines of their own; all others are parts of a line
BROKEN = re.compile(r"([^\W\d_]+)-\n([a-zß-öø-ÿ]\w*)")  # a word that a line of a PDF breaks
HYPHENATED = re.compile(r"\b(?=(\w+-\w+))")

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class DocumentError(ValueError):
    """A document that cannot be read: which, why, what to do."""


def read_document(path: str | Path, head: int = 2**16) -> tuple[str, str]:
    """(title, text) of a file; the title is empty where none is marked, and of Markdown sought in the first `head` characters only.

    Raises DocumentError when nothing can be read from it.
    """
    path = Path(path)
    try:
        title, text = READERS.get(path.suffix.lower(), _text)(path, head)
    except OSError as error:
        raise DocumentError(f"{path}: {(error.strerror or str(error)).lower()}; give the path of a text, Markdown, HTML or PDF file") from None
    if not text.strip():
        is_pdf = path.suffix.lower() == ".pdf"
        raise DocumentError(f"{path} holds no text; a scanned PDF needs OCR first" if is_pdf else f"{path} holds no text")
    return title, text


def _text(path: Path, head: int = 0) -> tuple[str, str]:
    data = path.read_bytes()
    if b"\0" in data[:4096] and not data.startswith(UTF16):
        raise DocumentError(f"{path} is no text, for it holds null bytes; give a text, Markdown, HTML or PDF file")
    return "", decoded(data)


def decoded(data: bytes) -> str:
    """The text of a file, every line ending in a line feed: UTF-16 where its first bytes say so, else UTF-8. What has more bytes that are no UTF-8
    than letters beyond ASCII is Windows-1252, which old files mostly are."""
    return _characters(data).replace("\r\n", "\n").replace("\r", "\n")


def _characters(data: bytes) -> str:
    if data.startswith(UTF16):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("utf-8-sig", "replace")
        wrong = text.count("\ufffd")
        letters = sum(c > "\x7f" for c in text) - wrong
        return text if letters > wrong else data.decode("cp1252", "replace")


def _markdown(path: Path, head: int) -> tuple[str, str]:
    """The title is the first heading in the head; the length is that of the source."""
    try:
        from markdown_it import MarkdownIt
    except ImportError:
        raise DocumentError(f"{path}: reading Markdown needs markdown-it-py; install it with: pip install 'tacit[documents]'") from None
    text = _text(path)[1]
    tokens = MarkdownIt().parse(text[:head])
    return next((tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"), ""), text


def _html(path: Path, head: int) -> tuple[str, str]:
    try:
        from bs4 import BeautifulSoup
    except ImportError:
        raise DocumentError(f"{path}: reading HTML needs beautifulsoup4; install it with: pip install 'tacit[documents]'") from None
    soup = BeautifulSoup(path.read_bytes(), "html.parser")
    title = soup.title.get_text() if soup.title else ""
    for hidden in soup(["script", "style", "template", "noscript", "title", "nav"]):
        hidden.decompose()
    for start in soup(["br", "td", "th"]):
        start.insert_before("\n")
    for block in soup(BLOCKS.split()):
        block.insert_before("\n\n")
        block.insert_after("\n\n")
    return title, re.sub(r"\n\s*\n", "\n\n", soup.get_text()).strip()


def _pdf(path: Path, head: int) -> tuple[str, str]:
    try:
        from pypdf import PdfReader
        from pypdf.errors import PyPdfError
    except ImportError:
        raise DocumentError(f"{path}: reading PDF needs pypdf; install it with: pip install 'tacit[documents]'") from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what is wrong with a file is told below, once
    try:
        reader = PdfReader(path)
        title = str((reader.metadata or {}).get("/Title") or "")
        return title, _mended("\n".join(page.extract_text() for page in reader.pages), title)
    except (PyPdfError, *DAMAGE) as error:
        raise DocumentError(f"{path} is no readable PDF ({type(error).__name__}: {error}); convert it to text first") from None


def _mended(text: str, title: str) -> str:
    """Words that lines break made whole: without the hyphen, unless the same word has it within a line or the title."""
    hyphenated = set(HYPHENATED.findall(f"{title} {text}".lower()))

    def whole(broken: re.Match[str]) -> str:
        word = f"{broken[1]}-{broken[2]}"
        return word if word.lower() in hyphenated else broken[1] + broken[2]

    return BROKEN.sub(whole, text)


READERS: dict[str, Callable[[Path, int], tuple[str, str]]] = {  # (path, characters of the head) -> title, text
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".pdf": _pdf,
}
