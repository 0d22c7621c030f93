"""`python -m scripts.check_redaction`: which personal data the redaction holds, over a written corpus, as a table.

Each value stands in a sentence. It is held where no three digits or letters in a row of it are left; a look-alike is
left alone where the sentence comes back as it was. The numbers are made up, or set aside by their issuers for tests.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tinydispatch.redaction import Redactor


@dataclass(frozen=True)
class Kind:
    """One class: values in sentences (`[value]`), and sentences that only look as if they held one."""

    name: str
    personal: tuple[str, ...]
    harmless: tuple[str, ...] = ()


_HEX = "0123456789abcdef"
_KEYS = (
    "sk-proj-" + _HEX * 2, "sk-ant-api03-" + _HEX, "sk_live_" + _HEX, "ghp_" + _HEX * 2, "github_pat_" + _HEX,
    "glpat-" + _HEX, "hf_" + _HEX * 2, "xoxb-123456789012-" + _HEX, "AKIAIOSFODNN7EXAMPLE", "AIzaSyA" + _HEX * 2,
    "SG." + _HEX + "." + _HEX, "npm_" + _HEX * 2, "AC" + _HEX * 2, "whsec_" + _HEX, "gsk_" + _HEX,
    "123456789:AA" + _HEX * 2 + "0",
)  # fmt: skip
CORPUS = (
    Kind(
        "e-mail",
        ("write to [ada.l+x@sub.corp.io].", "an [bjørn@smörgås.se] bitte", "mail [info@münchen-büro.de]",
         "send to [post@xn--80ak6aa92e.xn--p1ai]", "cc [用户@例子.中国]", "到[bo@corp.cn]去", "ask [иван@почта.рф] now",
         "<[O'neil_x@corp.co.uk]>"),
        ("@home at 5", "price @ 3.50 a piece", "npm i @scope/name@1.2", "meet a@ the pub"),
    ),
    Kind(
        "phone, international",
        ("call [+47 22 12 34 56] now", "ring [0047 912 34 567]", "[+1 (212) 555-0199]", "tel [+442079460958]",
         "[+49 (0)30 901820]", "[+91-98765-43210]"),
        ("+3 points", "add +1500 kcal", "0045 is the code"),
    ),
    Kind(
        "phone, national",
        ("call [(212) 555-0199]", "text [212-555-0199]", "on [212 555 0199]", "at [212.555.0199] please",
         "[1-800-555-0199]", "ring [020 7946 0958]", "mobile [07700 900123]", "[07700900123] is mine",
         "Tel. [030 901820]", "unter [0171/1234567]", "au [01 23 45 67 89]", "call [(02) 9876 5432]",
         "bel [06-12345678]", "[03-1234-5678] in Tokyo", "ring [22 12 34 56]", "tlf [912 34 567]",
         "[612 345 678], Madrid",
         "at [98765 43210]", "[138 1234 5678]", "[13812345678]", "[(11) 91234-5678]", "[8 (495) 123-45-67]",
         "phone 2125550199: [2125550199]", "my mobile is [91234567]", "text [555 0199]"),
        ("on 2026-03-19 at 2026-03-19T10:30", "call me on 12/05/2026 at 10:30", "order 4512345678", "0.123 456 789 m",
         "1,234,567 people", "convert 1500.50 USD", "text me 3 times at 10.15", "room 0123", "10 20 30 minutes",
         "version 1.2.3 of 2024.10.01", "between 1000 and 2000", "call 3 of 120 people", "from 09:00 to 10:30",
         "flight LH 0123", "article 123 456 789 012"),
    ),
    Kind(
        "IBAN",
        ("to [DE89 3704 0044 0532 0130 00]", "to [de89370400440532013000]", "Iban [No93 8601 1117 947] from",
         "[GB29 NWBK 6016 1331 9268 19] today", "[FR14-2004-1010-0505-0001-3M02-606]",
         "[BE68 5390 0754 7034] this time"),
        ("part AT12 3456 7890", "room DE12 next to it, thanks", "no93 is a bus line in the city"),
    ),
    Kind(
        "card",
        ("pay with [4111 1111 1111 1111]", "[5555-5555-5555-4444] 12/27", "amex [378282246310005]",
         "2 tickets, 2 [4111111111111111]", "[6011 1111 1111 1117] cvv"),
        ("order 4111111111111112", "1234567890123456 pieces", "pi is 3.14159265358979323"),
    ),
    Kind(
        "social security",
        ("my SSN is [078-05-1120]", "social security number [219 09 9999]", "ssn: [219099999]"),
        ("part 000-12-3456", "999-12-3456 a code", "12-34-5678"),
    ),
    Kind(
        "US account",
        ("from account [000123456789]", "account number: [12345678]", "routing [021000021]", "acct no. [9876 5432 10]",
         "savings account #[44556677]"),
        ("an account of 3 pages", "account 42", "on account of 2026"),
    ),
    Kind(
        "IP address",
        ("ping [10.1.2.3]", "from [2001:0db8:85a3:0000:0000:8a2e:0370:7334]", "[2a02:8071::3c] is down",
         "[fe80::1ff:fe23:4567:890a]", "at [::ffff:192.168.7.9]"),
        ("version 1.2.3", "at 10:30:45", "std::vector<int>", "ratio 3:2:1", "add::face", "loopback ::1"),
    ),
    Kind(
        "JWT",
        (f"token [eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.{_HEX}{_HEX}]",),
        ("eyJ is how base64 begins",),
    ),
    Kind(
        "vendor's key",
        (*(f"key [{key}] here" for key in _KEYS), "Authorization: Bearer [" + _HEX + "]",
         "[-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----]"),
        ("the sk-learn library", "pk_id is a column", "a bearer of news", "secret-management guidelines"),
    ),
    Kind(
        "URL with password",
        ("clone https://[bo:hunter2xy]@git.corp.io/x", "redis://[:pass7word]@10-host/0", "open https://x.io/cb?access_token=[abc123def456]",
         "get https://x.io/a?api_key=[k7k7k7k7k7]&page=2"),
        ("see https://x.io/a?page=2&key=ab", "https://x.io:8080/path", "ratio a:b@c"),
    ),
    Kind(
        "password in words",
        ("password: [hunter2xy]", "my password is [Tr0ub4dor]", "apiKey=[zzyyxx99]",
         "set client_secret = \"[q1w2e3r4]\"",
         "the pin code is [4711]"),
        ("the password is wrong", "reset my password please", "pin the message", "an api key is needed"),
    ),
)  # fmt: skip
KEYS = ("password", "pwd", "apiKey", "api-key", "access_token", "accessToken", "client_secret", "clientSecret", "cvv",
        "CVC", "pin", "otp", "private_key", "refreshToken", "secret")  # fmt: skip
HARMLESS_KEYS = ("text", "tokens", "keyword", "pinned", "passenger", "key", "max_tokens")


def misses(redactor: Redactor) -> tuple[list[tuple[str, int, int, int, int]], list[str]]:
    """For each class how many values are held, of how many, how many look-alikes stay, of how many; and each miss."""
    rows, wrong = [], []
    for kind in CORPUS:
        held = [case for case in kind.personal if _is_held(redactor, case)]
        stay = [case for case in kind.harmless if redactor.record({"text": case})["text"] == case]
        rows.append((kind.name, len(held), len(kind.personal), len(stay), len(kind.harmless)))
        wrong += [f"{kind.name}: not held: {case}" for case in kind.personal if case not in held]
        wrong += [f"{kind.name}: changed: {case}" for case in kind.harmless if case not in stay]
    value = "Zebra-77-quartz"
    removed = [key for key in KEYS if value not in str(redactor.record({"say": f"it is {value}", "a": {key: value}}))]
    kept = [key for key in HARMLESS_KEYS if redactor.record({"a": {key: value}}) == {"a": {key: value}}]
    rows.append(("argument by its name", len(removed), len(KEYS), len(kept), len(HARMLESS_KEYS)))
    wrong += [f"argument by its name: not held: {key}" for key in KEYS if key not in removed]
    return rows, wrong + [f"argument by its name: changed: {key}" for key in HARMLESS_KEYS if key not in kept]


def _is_held(redactor: Redactor, case: str) -> bool:
    before, _, rest = case.partition("[")
    value, _, after = rest.rpartition("]")
    text: str = redactor.record({"text": before + value + after})["text"]
    # Three characters in a row of it, in groups as it was written, that were not in the sentence beside it.
    left = [value[i : i + 3] for i in range(len(value) - 2) if value[i : i + 3].isalnum()]
    made_up = "+1555010 400000000000 XX00TEST user@example.com secret-jwt-removed 192.0.2. 2001:db8:: 900-00- 90000000"
    return not any(part in text and part not in before + after + made_up for part in left)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 1 where something is missed that is not known to be."""
    parser = argparse.ArgumentParser(prog="python -m scripts.check_redaction", description=__doc__)
    parser.parse_args(argv)
    rows, wrong = misses(Redactor())
    print("| class | held | look-alikes left alone |\n| --- | --- | --- |")
    for name, held, n_personal, stay, n_harmless in rows:
        print(f"| {name} | {held} of {n_personal} | {stay} of {n_harmless} |")
    for line in wrong:
        print(line.replace("\n", "\\n"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
