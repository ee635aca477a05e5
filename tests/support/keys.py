"""Keys of every kind, and a search for them in a program's output."""

import json

GATEWAY_KEY = "llmg_" + "Gk" * 21 + "x"
PLAIN_KEY = 'plain.gateway+key/of="no~known\\shape"'
PROVIDER_KEY = "azureProviderKeyOfNoKnownShape0123456789"
ADMIN_KEY = "the-administrator's-key-of-no-known-shape"
HEADER_KEY = "Bearer of-the-users-own-0123456789"
OTHER_KEY = "key-in-a-header-of-one-call-only"
KEYS = (GATEWAY_KEY, PLAIN_KEY, PROVIDER_KEY, ADMIN_KEY, HEADER_KEY, OTHER_KEY)


def assert_no_key(text: str, *more: str) -> None:
    """Fail if a key or half of one is in the text, plain or as a repr or JSON shows it."""
    for key in (*KEYS, *more):
        secret = key[12:] if key.startswith("llmg_") else key.removeprefix("Bearer ")
        for part in (secret, secret[: len(secret) // 2], secret[len(secret) // 2 :]):
            for form in (part, repr(part)[1:-1], json.dumps(part)[1:-1]):
                assert form not in text, f"{key} in …{text[max(0, text.find(form) - 300) :][:400]}…"
