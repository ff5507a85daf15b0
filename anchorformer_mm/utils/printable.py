"""Text from files of others, shown without what it could do to a terminal."""


def printable(text: str) -> str:
    r"""Replace what cannot be printed as it is by its escape, as ``\x1b``."""
    return ''.join(
        c if c.isprintable() else c.encode('unicode_escape').decode()
        for c in text
    )
