#!/usr/bin/env python3
"""Make the inputs and known answers of this folder.

    venv/bin/pip install numpy==2.4.6 scikit-learn==1.9.1 scipy==1.17.1 onnxruntime==1.32.0 tokenizers==0.23.3 magika==1.0.3
    venv/bin/python demo/make_demo.py --datasets DIR

DIR is the folder that `models/heads/train_heads.py` takes. The text files in `files/` are written by hand and
kept as they are; the binary ones are written here. The answers come from ONNX Runtime and, for files, from
the magika package, each on the model in `models/`. An item is left out if its two best scores are closer
than 0.05, so that the known answer does not hang on the last digits of a runtime's arithmetic.
"""

import argparse
import csv
import gzip
import io
import json
import math
import random
import re
import sqlite3
import struct
import sys
import tarfile
import wave
import zipfile
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "models"
sys.dont_write_bytecode = True
sys.path.insert(0, str(MODELS / "heads"))

import train_heads  # noqa: E402
import numpy as np  # noqa: E402

ITEMS = 160
LEAST_MARGIN = 0.05
DATE = (2025, 1, 1, 0, 0, 0)

LABELS = {
    "Dockerfile": "dockerfile", "Makefile": "makefile", "PriorityLane.java": "java", "alerts.yaml": "yaml",
    "arrivals.csv": "csv", "archive.tar": "tar", "bundle.zip": "zip", "client.ts": "typescript",
    "console.css": "css", "console.html": "html", "console.js": "javascript", "exit.elf": "elf",
    "add.wasm": "wasm", "gradient.png": "png", "gradient.bmp": "bmp", "dot.gif": "gif", "lanes.svg": "svg",
    "ledger.sql": "sql", "ledger.sqlite": "sqlite", "letter.docx": "docx", "log.gz": "gzip", "note.pdf": "pdf",
    "publisher.go": "go", "quantiles.py": "python", "ring.c": "c", "runbook.md": "markdown", "smoke.sh": "shell",
    "task.json": "json", "token_bucket.rs": "rust", "tone.wav": "wav", "worker.toml": "toml",
    "workflow.xml": "xml",
}


def png(width, height):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    rows = b"".join(
        b"\0" + bytes(value for x in range(width) for value in (4 * x % 256, 4 * y % 256, (x * y) % 256))
        for y in range(height))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b""))


def bmp(width, height):
    rows = b"".join(bytes(value for x in range(width) for value in (3 * y % 256, 5 * x % 256, 128))
                    for y in range(height))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, len(rows), 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + header + rows


def gif(size):
    """A disc in two colours; clear codes keep every code three bits wide."""
    middle = (size - 1) / 2
    pixels = [int((x - middle) ** 2 + (y - middle) ** 2 < middle ** 2) for y in range(size) for x in range(size)]
    bits, count, data = 0, 0, bytearray()
    codes = [4]
    for index, pixel in enumerate(pixels):
        if index and index % 2 == 0:
            codes.append(4)
        codes.append(pixel)
    for code in codes + [5]:
        bits |= code << count
        count += 3
        while count >= 8:
            data.append(bits & 255)
            bits >>= 8
            count -= 8
    if count:
        data.append(bits & 255)
    blocks = b"".join(bytes([len(data[i:i + 255])]) + data[i:i + 255] for i in range(0, len(data), 255))
    return (b"GIF89a" + struct.pack("<HHBBB", size, size, 0x80, 0, 0) + b"\xff\xff\xff\x34\x65\xa4"
            + b"," + struct.pack("<HHHHB", 0, 0, size, size, 0) + b"\x02" + blocks + b"\0;")


def wav():
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(b"".join(
            struct.pack("<h", round(12000 * math.sin(2 * math.pi * 440 * n / 8000))) for n in range(4000)))
    return stream.getvalue()


def pdf():
    text = b"BT /F1 18 Tf 72 720 Td (Every accepted task gets an answer.) Tj 0 -28 Td (No answer, no acceptance.) Tj ET"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(text), text),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    out, places = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, body in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + (b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
                  % (table, len(out)))


def elf():
    """A 64-bit Linux program that leaves with status 0, with the usual section headers."""
    code = bytes.fromhex("31ff6a3c580f05")  # xor edi, edi; push 60; pop rax; syscall
    names = b"\0.text\0.shstrtab\0"
    base, start = 0x400000, 64 + 56
    names_at = start + len(code)
    sections_at = (names_at + len(names) + 7) // 8 * 8
    ident = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + start, 64, sections_at, 0, 64, 56, 1, 64, 3, 2)
    program = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, names_at, names_at, 0x1000)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 1, 6, base + start, start, len(code), 0, 0, 16, 0)
    sections += struct.pack("<IIQQQQIIQQ", 7, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    body = header + program + code + names
    return body + bytes(sections_at - len(body)) + sections


def wasm():
    """A module with one exported function, add(i32, i32) -> i32."""
    def section(kind, body):
        return bytes([kind, len(body)]) + body
    return (b"\0asm\x01\0\0\0" + section(1, b"\x01\x60\x02\x7f\x7f\x01\x7f") + section(3, b"\x01\x00")
            + section(7, b"\x01\x03add\x00\x00") + section(10, b"\x01\x07\x00\x20\x00\x20\x01\x6a\x0b"))


def zipped(files):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return stream.getvalue()


def docx():
    package = "http://schemas.openxmlformats.org/package/2006"
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    kind = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    head = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
    lines = ["Dear operator,", "the backlog has been empty since noon.", "Nothing is waiting and nobody is late."]
    paragraphs = "".join(f"<w:p><w:r><w:t>{line}</w:t></w:r></w:p>" for line in lines)
    return zipped({
        "[Content_Types].xml": f'{head}<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/word/document.xml" ContentType="{kind}"/></Types>',
        "_rels/.rels": f'{head}<Relationships xmlns="{package}/relationships">'
        f'<Relationship Id="rId1" Type="{office}" Target="word/document.xml"/></Relationships>',
        "word/document.xml": f'{head}<w:document xmlns:w="{word}"><w:body>{paragraphs}</w:body></w:document>',
    })


def tar(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mtime = 1735689600
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def sqlite(script):
    connection = sqlite3.connect(":memory:")
    connection.execute("PRAGMA page_size = 1024")
    connection.executescript(script)
    content = connection.serialize()
    connection.close()
    return content


def write_binary_files(folder):
    def text(name):
        return (folder / name).read_bytes()
    log = "".join(f"2025-01-01T00:{n // 60:02}:{n % 60:02}Z INFO task settled waited_ms={n * 37 % 101}\n"
                  for n in range(300))
    files = {
        "gradient.png": png(48, 48), "gradient.bmp": bmp(32, 32), "dot.gif": gif(24), "tone.wav": wav(),
        "note.pdf": pdf(), "exit.elf": elf(), "add.wasm": wasm(), "letter.docx": docx(),
        "bundle.zip": zipped({name: text(name) for name in ("task.json", "quantiles.py", "ring.c")}),
        "archive.tar": tar({name: text(name) for name in ("worker.toml", "arrivals.csv")}),
        "log.gz": gzip.compress(log.encode(), mtime=0),
        "ledger.sqlite": sqlite(text("ledger.sql").decode().split("SELECT t.name")[0]),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_lines(path, items):
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    agree = sum(item["label"] == item["expected"] for item in items)
    print(f"{path.name}: {len(items)} items, {agree} answers equal the label")


def judge(encoder, head, candidates):
    """Every candidate (label, text) with its answer, near-ties left out."""
    labels, weights, bias = train_heads.load_head(MODELS / "heads" / f"{head}.head.json")
    scores = train_heads.scores(encoder.encode([text for _, text in candidates]), weights, bias)
    for (label, text), row in zip(candidates, scores):
        second, best = np.sort(row)[-2:]
        if best - second > LEAST_MARGIN:
            yield {"text": text, "label": label, "expected": labels[int(row.argmax())], "score": round(float(best), 6)}


def intents(encoder, datasets):
    """Two texts of each of the 77 intents, and six more."""
    rows = train_heads.read_rows(datasets / "banking77.csv.gz", "intent")
    candidates = [(label, text) for split, label, text in rows if split == "test" and len(text) <= 300]
    random.Random(77).shuffle(candidates)
    chosen, spare, count = [], [], {}
    for item in judge(encoder, "banking77", candidates):
        count[item["label"]] = count.get(item["label"], 0) + 1
        (chosen if count[item["label"]] <= 2 else spare).append(item)
    chosen = (chosen + spare)[:ITEMS]
    random.Random(78).shuffle(chosen)
    return chosen


# What `card-questions.csv` is about, and how many rows of each are there to learn from and to test on.
CARD_INTENTS = [
    "activate_my_card", "card_about_to_expire", "card_arrival", "card_delivery_estimate", "card_linking",
    "card_not_working", "card_swallowed", "change_pin", "compromised_card", "get_physical_card",
    "lost_or_stolen_card", "pin_blocked",
]
CARD_TRAIN, CARD_TEST = 50, 15


def card_questions(datasets):
    """Rows as an export has them: some twice, some empty, some with a question to test on among those to learn from."""
    rows = train_heads.read_rows(datasets / "banking77.csv.gz", "intent")
    chosen, left = [], {}
    for split, label, text in rows:
        most = CARD_TRAIN if split == "train" else CARD_TEST
        if label in CARD_INTENTS and left.setdefault((split, label), most) > 0:
            left[split, label] -= 1
            chosen.append([split, " ".join(text.split()), label])
    generator = random.Random(7)
    learnt = [row for row in chosen if row[0] == "train"]
    tested = [row for row in chosen if row[0] == "test"]
    dirt = [[split, "  " + text.upper() + " ", label] for split, text, label in generator.sample(learnt, 20)]
    dirt += [["train", text, label] for _, text, label in generator.sample(tested, 10)]
    dirt += [["train", " ", label] for _, _, label in generator.sample(learnt, 5)]
    dirt += [["train", text, ""] for _, text, _ in generator.sample(learnt, 5)]
    rows = chosen + dirt
    generator.shuffle(rows)
    return rows


def write_card_questions(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["split", "text", "intent"])
        writer.writerows(rows)


def sentiments(encoder, datasets):
    """A random part of the texts that name no address and no person's account and use no strong language."""
    unwanted = re.compile(r"https?:|www\.|\bt\.co\b|@|\b(?:damn|hell|shit|fuck\w*|crap|idiots?|stupid|kill\w*|murder\w*|"
                          r"rape\w*|sex\w*|nazi\w*|terroris\w*|suicid\w*|dead|death|shooting|fatal|slave\w*|slavery|gangs?|blood|tragedy|dirty|teat)\b", re.IGNORECASE)
    rows = train_heads.read_rows(datasets / "twitter_financial_news_sentiment.csv.gz", "sentiment")
    candidates = [(label, text) for split, label, text in rows
                  if split == "valid" and not unwanted.search(text) and 30 <= len(text)]
    candidates = sorted(set(candidates))
    random.Random(3).shuffle(candidates)
    return list(judge(encoder, "finance-sentiment", candidates))[:ITEMS]


def files(folder):
    from magika import Magika
    magika = Magika(model_dir=MODELS / "magika")
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        content = path.read_bytes()
        if len(content) > 20_000:
            raise SystemExit(f"{path.name} has {len(content)} bytes, more than 20,000")
        prediction = magika.identify_bytes(content).prediction
        # The best score and the second best are at least 2 * score - 1 apart.
        if 2 * prediction.score - 1 <= LEAST_MARGIN or path.name not in LABELS:
            print(f"left out: {path.name}: {prediction.dl.label} {prediction.score:.3f}", file=sys.stderr)
            continue
        yield {"file": f"files/{path.name}", "label": LABELS[path.name], "expected": str(prediction.output.label),
               "score": round(float(prediction.score), 6)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datasets", type=Path, required=True, help="folder with the gzip CSV files")
    arguments = parser.parse_args()
    write_binary_files(HERE / "files")
    write_lines(HERE / "files.jsonl", list(files(HERE / "files")))
    encoder = train_heads.Encoder(MODELS / "minilm")
    write_lines(HERE / "intents.jsonl", intents(encoder, arguments.datasets))
    write_card_questions(HERE / "card-questions.csv", card_questions(arguments.datasets))
    write_lines(HERE / "sentiment.jsonl", sentiments(encoder, arguments.datasets))


if __name__ == "__main__":
    main()
