"""Messages of a program in German and English: the catalogues from which Wagtail, a content manager, is translated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gptfluence.common.packages import Contents, Package

PACKAGE = Package(
    archive="wagtail-7.2-py3-none-any.whl",
    sha256="2c0d41545976b57266e84df3f03e7dd812e6a4d0a8d61d5b76863fe021613973",
    size=9_229_326,
    licence="BSD-3-Clause",
)
_WORDS = range(4, 25)
_MARKUP = "<>{}%"  # of pages, and of places that are filled in


def messages(contents: Contents) -> Iterator[dict[str, Any]]:
    """id, de and en of each message that is a phrase or a sentence without markup."""
    from babel.messages.pofile import read_po

    for name in contents.names:
        if not name.endswith("/locale/de/LC_MESSAGES/django.po"):
            continue
        with contents.open(name) as file:
            catalogue = read_po(file, locale="de")
        for number, message in enumerate(catalogue):
            if not isinstance(message.id, str) or message.fuzzy or not message.string:
                continue  # a form for each number, a guess, or not translated
            en, de = " ".join(message.id.split()), " ".join(str(message.string).split())
            if len(en.split()) in _WORDS and en != de and not set(_MARKUP) & set(en + de):
                yield {"id": f"{name.split('/locale/')[0]}/{number}", "de": de, "en": en}
