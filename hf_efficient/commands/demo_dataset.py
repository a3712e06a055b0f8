"""Data, tokenizer and teacher for `hf-efficient demo`, made from the running Python without a network.

The task is text classification: which area of the standard library does a piece of docstring document?
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import inspect
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertConfig, BertTokenizer, PreTrainedTokenizerFast

from hf_efficient.errors import UserError

TOPIC_MODULES: dict[str, tuple[str, ...]] = {
    area: tuple(names.split())
    for area, names in {
        "data types": """array bisect builtins calendar codecs collections _collections_abc copy datetime difflib
        encodings enum graphlib heapq pprint re reprlib string _strptime textwrap time types unicodedata weakref
        zoneinfo""",
        "mathematics": """_blake2 cmath colorsys decimal fractions functools hashlib hmac itertools math numbers
        operator random secrets _sha3 statistics""",
        "files": """bz2 errno fcntl filecmp fileinput fnmatch genericpath glob grp gzip io linecache lzma mmap ntpath
        os pathlib platform posix posixpath pwd resource shutil stat tarfile tempfile zipfile zlib""",
        "concurrency": """asyncio concurrent contextvars multiprocessing queue sched select selectors signal subprocess
        thread threading _threading_local""",
        "internet": """cgi email ftplib http imaplib ipaddress mailbox nntplib poplib smtplib socket socketserver ssl
        telnetlib urllib uuid webbrowser wsgiref xmlrpc""",
        "data formats": """base64 binascii configparser copyreg csv dbm elementtree html json marshal mimetypes netrc
        pickle plistlib pyexpat quopri shelve sqlite3 struct tomllib wave xml""",
        "interfaces": """argparse cmd curses getopt getpass gettext locale optparse rlcompleter shlex tkinter
        turtle""",
        "development": """abc ast bdb code codeop contextlib ctypes dataclasses dis doctest faulthandler gc importlib
        inspect logging modulefinder pdb pickletools pkgutil profile pstats pyclbr pydoc runpy site symtable sys
        sysconfig timeit tokenize trace traceback tracemalloc typing unittest venv warnings zipimport""",
    }.items()
}
"""Area (the label) -> its modules, after the chapters of the library reference. `name` also stands for its twins in C
(`_name`) and in Python (`_pyname`). A module that this interpreter lacks is passed over."""

AMBIGUOUS_MODULE_NAMES = frozenset(
    """array ast base64 bisect calendar cgi cmd code collections concurrent copy csv curses decimal email encodings
    enum errno fractions glob gzip hmac html http inspect io json locale logging lzma mailbox marshal math numbers
    operator os pickle platform posix profile queue random re resource secrets select selectors signal site socket ssl
    stat statistics string struct subprocess thread threading time trace traceback turtle types uuid warnings
    wave xml""".split()  # noqa: SIM905
)
"""Module names that are also words of the language or of the trade; see `mask_names`."""

TEACHER_VOCAB_SIZE = 6000
TEACHER_EPOCHS = 3
TEACHER_BATCH_SIZE = 32
TEACHER_LEARNING_RATE = 3e-4
TEACHER_WARMUP_STEPS = 0.1  # a fraction of all steps
TEACHER_MAX_LENGTH = 64
TEACHER_BF16 = True

PASSAGE_WORDS = 30
VALIDATION_FRACTION = 0.15
MASK = "[MASK]"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", MASK)
SKIPPED_MODULES = frozenset({"_tkinter"})

_MODULE_NAMES = frozenset(name.strip("_") for names in TOPIC_MODULES.values() for name in names)
_IMPORT_LINE = re.compile(r"^[ \t]*(?:from[ \t]+[\w.]+[ \t]+)?import[ \t].*$", re.MULTILINE)
_URL = re.compile(r"\w+://\S+")
_DOTTED = re.compile(r"\w+(?:\.\w+)+")
_MODULE_REFERENCE = re.compile(
    r"""(?<=[`'"])\w+(?=[`'"]) | \b\w+(?=\s+(?:module|package)s?\b) | (?<=\bmodule\s)\w+ | (?<=\bimport\s)\w+""",
    re.VERBOSE,
)
_WORD = re.compile(r"\w+")


def load_docstring_dataset() -> DatasetDict:
    """Return the splits `train` and `validation`, columns `text` and `label` (a `ClassLabel` of the areas).

    A text is one passage of a docstring (`split_passages`), with module names masked (`mask_names`). A passage that
    occurs in two areas is left out; one that occurs several times in an area is there once. Whatever belongs to a
    top-level class or function is in one split, also where several modules have one of that name: a hash of the name
    decides. Rows and their order depend on nothing but the interpreter.

    Source files are parsed, not imported; only modules without one (written in C) are imported. A Python that comes
    without the sources gives fewer rows.
    """
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for area, module in ((area, module) for area, modules in TOPIC_MODULES.items() for module in modules):
        for owner, text in _read_docstrings(module):
            for passage in split_passages(text, module):
                found.setdefault(passage.lower(), {}).setdefault(area, (passage, owner))
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    for areas in found.values():
        if len(areas) == 1:
            [(area, (passage, owner))] = areas.items()
            rows["validation" if _hash_fraction(owner) < VALIDATION_FRACTION else "train"].append((passage, area))
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(TOPIC_MODULES))})
    splits = {}
    for split, pairs in rows.items():
        pairs.sort(key=lambda pair: (_hash_fraction(pair[0]), pair[0]))
        texts, labels = zip(*pairs, strict=True)
        splits[split] = Dataset.from_dict({"text": list(texts), "label": list(labels)}, features=features)
    return DatasetDict(splits)


def split_passages(docstring: str, module: str) -> list[str]:
    """Return the passages of a docstring of `module`: its paragraphs, masked, and joined to `PASSAGE_WORDS` words.

    An example is cut, from `>>>` to the end of its paragraph. A passage with fewer than four words is left out.
    """
    passages: list[list[str]] = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        words = mask_module_names(paragraph.split(">>>")[0], module).split()
        if passages and len(passages[-1]) < PASSAGE_WORDS:
            passages[-1] += words
        else:
            passages.append(words)
    return [" ".join(words) for words in passages if sum(word[:1].isalpha() for word in words) >= 4]


def mask_module_names(text: str, module: str) -> str:
    """Return the text of a docstring of `module` without the names of the modules of `AREAS`.

    Underscores around a name do not count. `[MASK]` replaces, whole:

    * every URL, and every dotted name with a module anywhere in it: `time.sleep`, `xml.dom.Node`, `random.py`;
    * a module name alone, in any case: `asyncio`, `_ZLIB`;
    * but if the name is also a word (`WORDS`: string, time, queue, json) only where it means the module: in the
      module's own docstrings, in quotes or backquotes, after "import" or "module", before "module" or "package".

    Lines that import are removed.
    """

    def mask_module(match: re.Match[str]) -> str:
        return MASK if any(part.strip("_").lower() in _MODULE_NAMES for part in match[0].split(".")) else match[0]

    def mask_alone(match: re.Match[str]) -> str:
        name = match[0].strip("_").lower()
        return MASK if name == module.strip("_") or name in _MODULE_NAMES - AMBIGUOUS_MODULE_NAMES else match[0]

    text = _URL.sub(MASK, _IMPORT_LINE.sub("", text))
    text = _MODULE_REFERENCE.sub(mask_module, _DOTTED.sub(mask_module, text))
    return _WORD.sub(mask_alone, text)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a lower-casing WordPiece tokenizer of at most `vocab_size` tokens; equal texts give equal ones.

    Raises ValueError: `vocab_size` has no room for the characters of the texts, each a token that begins and one that
    continues a word.
    """
    texts = list(texts)
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = sorted(set("".join(learner.normalizer.normalize_str(text) for text in texts)) - set(" "))
    # The trainer numbers tokens that continue a word in the order of a randomly seeded hash table, and breaks ties by
    # number. Naming them beforehand fixes their numbers.
    reserved = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    if vocab_size < len(reserved):
        raise UserError(f"vocab_size={vocab_size} is too small for these texts: give at least {len(reserved)}")
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=reserved, show_progress=False)
    learner.train_from_iterator(texts, trainer)
    vocabulary = dict(sorted(learner.get_vocab().items(), key=lambda item: item[1]))
    tokenizer: PreTrainedTokenizerFast = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=128)
    return tokenizer


def demo_bert_config(vocab_size: int, labels: list[str]) -> BertConfig:
    """Return the configuration of the demo's teacher: a BERT of 4 layers, 8 heads, hidden size 256."""
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=128,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )


def _read_docstrings(module: str) -> Iterator[tuple[str, str]]:
    """Yield (outermost class or function, docstring) of a module and its twins: parsed if there is source."""
    library = Path(sysconfig.get_path("stdlib"))
    for twin in (module, f"_{module}", f"_py{module}"):
        paths = [library / f"{twin}.py", *sorted((library / twin).rglob("*.py"))]
        sources = [
            path for path in paths if path.is_file() and not {"test", "tests"} & set(path.parts[len(library.parts) :])
        ]
        compiled = None if sources else _import_compiled(twin)
        found = [_parse_docstrings(ast.parse(source.read_bytes())) for source in sources]
        for owner, text in chain(*found, _inspect_docstrings(compiled) if compiled else ()):
            yield owner or module, inspect.cleandoc(text)


def _parse_docstrings(node: ast.AST, owner: str = "") -> Iterator[tuple[str, str]]:
    """Yield (outermost class or function, docstring) for everything below a node, nested functions included."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        owner = owner or getattr(node, "name", "")
        text = ast.get_docstring(node)
        if text:
            yield owner, text
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _parse_docstrings(child, owner)


def _import_compiled(module: str) -> ModuleType | None:
    """Return a module written in C, or None if there is none of that name. Never runs Python source."""
    if module in SKIPPED_MODULES:
        return None
    if module not in sys.builtin_module_names:
        spec = importlib.machinery.PathFinder.find_spec(module)
        if spec is None or not isinstance(spec.loader, importlib.machinery.ExtensionFileLoader):
            return None
    try:
        return importlib.import_module(module)
    except ImportError:
        return None


def _inspect_docstrings(module: ModuleType) -> Iterator[tuple[str, str]]:
    """Yield (class or function, docstring) for what a C module defines itself: no inherited text, no re-exports."""
    homes = {module.__name__.strip("_"), "os" if module.__name__ in {"posix", "nt"} else ""}
    yield from [("", module.__doc__)] if module.__doc__ else []
    for name, value in sorted(vars(module).items()):
        is_class = isinstance(value, type)
        home = getattr(value, "__module__", None) or module.__name__
        if not (is_class or inspect.isroutine(value)) or home.split(".")[0].strip("_") not in homes:
            continue
        members = sorted(vars(value).items()) if is_class else []
        for key, member in [(name, value), *members]:
            own = inspect.isroutine(member) or inspect.isdatadescriptor(member)
            if (member is value or (own and not key.startswith("__"))) and isinstance(member.__doc__, str):
                yield name, member.__doc__


def _hash_fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
