"""HTML that escapes whatever is not HTML already."""

from __future__ import annotations

from html import escape

NEVER_CLOSED = ("meta",)


class Markup(str):
    """Text that is HTML; a plain string is not, and is escaped where it becomes part of some."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | bool | None) -> Markup:
    """An element.

    Args:
        name: Of the element.
        *children: Escaped, unless they are `Markup`.
        **attributes: A trailing underscore is left out and others become hyphens (`class_`, `data_label`);
            True is an attribute without a value, False and None are none.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    opening = f"<{name}{given}>"
    return Markup(opening if name in NEVER_CLOSED else f"{opening}{join(*children)}</{name}>")


def join(*children: str) -> Markup:
    """Elements and texts one after another."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))
