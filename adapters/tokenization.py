"""What a tokeniser makes of texts, as one digest: two tokenisers with one vocabulary may differ in
all else (docs/adapter-format.md, section 4)."""

from __future__ import annotations

import hashlib
import json

from tokenizers import Tokenizer

from adapters.text import TextInput

# Part of the format: other texts would give every backbone another digest. Each is here for a step
# that tokenisers do or leave out: case, accents, composed and decomposed letters, Chinese
# characters, white space, control characters, punctuation, numbers, special tokens, merges.
TEXTS: tuple[TextInput, ...] = (
    ("It is a GOOD film, but McDonald's iPhone was not in the U.S.A.",),
    ("Don’t “quote” me — I’d rather wait… (really?!) [sic] {braces} <tag/>",),
    ("Café déjà-vu, naïve façade; Ångström, Łódź, Straße, İstanbul, œuvre, ﬁn.",),
    ("Cafe\u0301 de\u0301ja\u0300-vu, nai\u0308ve fac\u0327ade, A\u030angstro\u0308m",),
    ("Ελληνικά Σίσυφος, Русский язык, עברית, العربية, हिन्दी, ภาษาไทย",),
    ("中文字符和English混合。日本語のテキスト、カタカナ。한국어 문장",),
    ("か\u3099 ｶﾞ Ｆｕｌｌ　ｗｉｄｔｈ １２３",),
    ("  two  spaces,\ta tab,\na line,\r\nanother,\u00a0no break,\u2003em,\u200bzero  ",),
    ("a bell\x07, a mark\ufeff, a soft\u00adhyphen, a replacement \ufffd",),
    ("12,345.67 + 1e-5 = ½ x² ≠ ∞; €3.50, 100%, 2026-11-27T12:00:00Z, +49 (0)30 1234",),
    ("https://user@example.org:8080/a_b/c.html?q=1&r=2#top @name #tag snake_case camelCase C++",),
    ("😀 👍🏽 👩‍💻 ❤️ ♥ ™ © • →",),
    ("antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis " + "ab" * 60,),
    ("[MASK] [CLS] [SEP] [PAD] [UNK] <mask> <s> </s> <pad> <unk>",),
    ("The committee's unexpectedly thorough reinvestigation disappointed its shareholders.",),
    ("No.",),
    ("The meeting starts at nine o'clock.", "It begins in the Morning; nobody knows WHY."),
    ("她把书放回了书架上。", "The shelf is empty — déjà vu!"),
)


def tokenization(tokenizer: Tokenizer) -> str:
    """The sha256 over the token ids and type ids of the fixed texts."""
    digest = hashlib.sha256()
    for text in TEXTS:
        encoding = tokenizer.encode(*text)
        digest.update(json.dumps([encoding.ids, encoding.type_ids]).encode())
    return digest.hexdigest()
