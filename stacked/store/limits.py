"""How much of an adapter is read before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """What one adapter may cost. Sizes are bytes, times seconds."""

    max_bytes: int = 2 * GIB
    """One file, one download, and everything in one archive after unpacking."""
    max_members: int = 1000
    """Entries in an archive: a trainer's folder has tens, and each costs a look."""
    max_ratio: int = 200
    """Unpacked over packed size of an archive; only looked at above `ratio_floor`. Weights hardly
    compress; deflate reaches 1,032, on zeros alone."""
    ratio_floor: int = 16 * MIB
    """Small archives of zeros compress beyond any sensible ratio and do no harm."""
    max_config_bytes: int = MIB
    max_tokenizer_bytes: int = 128 * MIB
    """tokenizer.json; with 256,000 tokens, it has 33 MiB."""
    max_extra_bytes: int = 4 * MIB
    """Every other file; the largest of known models has 1.2 MiB. To parse 4 MiB takes up to 0.3 s,
    in which no other thread runs."""
    max_templates: int = 16
    max_template_characters: int = 128 * 1024
    max_header_bytes: int = 16 * MIB
    """The JSON header of a safetensors file."""
    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    """The longest silence within a download."""
    download_seconds: float = 900.0
    """A whole download; a server that drips bytes is cut off here."""
    max_redirects: int = 5


DEFAULT = Limits()
