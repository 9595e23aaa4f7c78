"""Names of cases, files and folders that someone who means harm would choose."""

import os
import random
from typing import Final

ESC: Final = "\x1b"
_TEXTS: Final = (
    "a..b", "...", "..a", "a.", "a...", ".hidden", "~", "~root", "-", "--", "-rf", "--help",
    "--overwrite", "-o", "--output=elsewhere", "a b", " a", "a ", "a\tb", "a\nb", "\n", "a\rb",
    "a\r\nb", "a\x01b", "\x07", "\x08\x08\x08", "\x0b\x0c", "\x7f", "\x9b31m", "\x85",
    f"{ESC}[31mred{ESC}[0m", f"{ESC}[2J{ESC}[H", f"{ESC}]0;title\x07", f"{ESC}]8;;x\x07y",
    f"{ESC}P1$r{ESC}\\", "\u2028", "\u2029", "\u200e", "\u202egpj.exe", "\u2066a\u2069",
    "\u200b", "\ufeff", "a\u0301", "\u05e9\u05dc\u05d5\u05dd", "\u75c7\u4f8b", "\U0001f9e0",
    "'", '"', "`", "'; ls; '", '" onload="alert(1)', "<script>alert(1)<\\script>",
    "<img src=x onerror=alert(1)>", "&lt;b&gt;", "&amp", "]]>", "<!--", "$(touch owned)",
    "`touch owned`", "; touch owned", "| cat", "> owned", "%s", "%n%n%n", "%d{}", "{}", "{0}",
    "{case_id}", "{0.__class__}", "[bold]", "[red]a", "[link=x]y", "[a", "a]", "\\", "a\\b",
    "..\\..\\owned", "C:", "C:\\owned", "con", "nul", "aux.txt", "*", "?", "a*?[b]", "!",
    "#", "a#b?c", "a;b", "a,b", "a:b", "a=b", "a@b", "null", "true", "1e5", "0x10", "NaN",
    "X_seg", "X_seg.nii.gz", "X.json", "manifest.json", "dataset.json", "X_report.html",
    ".X_seg.nii.gz.00000000.brats.tmp", "seg", "flair", "t1_t1", "_", "__", "-_-", "x_", "x-",
    "CON_flair", "predictions", "..%2f..%2fowned", "%00", "\\x00", "\\u202e", "\\n",
)  # fmt: skip
_BYTES: Final = (
    b"\xff", b"a\xffb", b"\xc3", b"\xed\xa0\x80", b"\xfe\xfe\xff\xff", b"caf\xe9",
    b"\x80\x81\x82", b"\xf0\x9f\xa7", b"\xc0\xaf", b"..\xc0\xaf..", b"\x9b31m",
)  # fmt: skip
FIXED: Final[tuple[bytes, ...]] = (*map(os.fsencode, _TEXTS), *_BYTES)
LONGEST: Final = 255  # bytes of a name, on the usual file systems
_PIECES: Final = (*FIXED, *(bytes([byte]) for byte in range(1, 256) if byte != 0x2F))


def hostile_names(count: int, seed: int = 8) -> list[bytes]:
    """``count`` different names, the same for the same seed: no slash, no zero byte, at least one
    and at most 255 bytes, neither "." nor "..".
    """
    source = random.Random(seed)
    names = dict.fromkeys(FIXED)
    for length in (200, 230, 236, 240, 243, 246, 250, 254, LONGEST):
        names[b"L" * length] = None
        names["\u00e9".encode() * (length // 2)] = None
        names[(b"../" * length)[:length].replace(b"/", b"_")] = None
    order = list(names)
    source.shuffle(order)
    while len(order) < count:
        parts = source.choices(_PIECES, k=source.randint(2, 6))
        name = b"".join(parts)[:LONGEST]
        if name not in (b".", b"..") and name not in names:
            names[name] = None
            order.append(name)
    return order[:count]
