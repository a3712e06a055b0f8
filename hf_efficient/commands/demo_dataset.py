"""Dataset, tokenizer and model configuration of `hf-efficient demo`, built from the running Python without a network.

The task is text classification: the topic of the standard library that a passage of a docstring documents.
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
    topic: tuple(names.split())
    for topic, names in {
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
"""Topic (the label) -> its modules, as in the chapters of the library reference. `name` also stands for its variants
in C (`_name`) and in Python (`_pyname`). A module that this interpreter does not have is skipped."""

AMBIGUOUS_MODULE_NAMES = frozenset(
    """array ast base64 bisect calendar cgi cmd code collections concurrent copy csv curses decimal email encodings
    enum errno fractions glob gzip hmac html http inspect io json locale logging lzma mailbox marshal math numbers
    operator os pickle platform posix profile queue random re resource secrets select selectors signal site socket ssl
    stat statistics string struct subprocess thread threading time trace traceback turtle types uuid warnings
    wave xml""".split()  # noqa: SIM905
)
"""Module names that are also ordinary words or terms of programming; see `mask_module_names`."""

TEACHER_VOCAB_SIZE = 6000
TEACHER_EPOCHS = 2.0
TEACHER_BATCH_SIZE = 16
TEACHER_LEARNING_RATE = 3e-4
TEACHER_WARMUP_STEPS = 0.1  # a fraction of all steps
TEACHER_MAX_LENGTH = 32

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
    """Return the splits `train` and `validation`, columns `text` and `label` (a `ClassLabel` of the topics).

    A text is one passage of a docstring (`split_passages`), with module names masked (`mask_module_names`). A passage
    of two topics is left out; one that occurs several times in a topic is kept once. All passages of a top-level class
    or function are in one split, chosen by a hash of its name, also if several modules have one of that name. Rows and
    their order depend on the interpreter alone.

    Source files are parsed, not imported; only modules without one (written in C) are imported. A Python that comes
    without the sources gives fewer rows.
    """
    passages: dict[str, dict[str, tuple[str, str]]] = {}
    for topic, module in ((topic, module) for topic, modules in TOPIC_MODULES.items() for module in modules):
        for owner, text in _read_docstrings(module):
            for passage in split_passages(text, module):
                passages.setdefault(passage.lower(), {}).setdefault(topic, (passage, owner))
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "validation": []}
    for passage_by_topic in passages.values():
        if len(passage_by_topic) == 1:
            [(topic, (passage, owner))] = passage_by_topic.items()
            rows["validation" if _hash_fraction(owner) < VALIDATION_FRACTION else "train"].append((passage, topic))
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(TOPIC_MODULES))})
    splits = {}
    for split, pairs in rows.items():
        pairs.sort(key=lambda pair: (_hash_fraction(pair[0]), pair[0]))
        texts, labels = zip(*pairs, strict=True)
        splits[split] = Dataset.from_dict({"text": list(texts), "label": list(labels)}, features=features)
    return DatasetDict(splits)


def split_passages(docstring: str, module: str) -> list[str]:
    """Return the passages of a docstring of `module`: its paragraphs, masked, and joined to `PASSAGE_WORDS` words.

    Examples are removed, from `>>>` to the end of the paragraph. A passage with fewer than four words is left out.
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
    """Return the text of a docstring of `module` without the names of the modules of `TOPIC_MODULES`.

    Underscores around a name are ignored. `[MASK]` replaces:

    * every URL, and every dotted name that contains a module: `time.sleep`, `xml.dom.Node`, `random.py`;
    * the name of a module, in upper or lower case: `asyncio`, `_ZLIB`;
    * a name that is also a word (`AMBIGUOUS_MODULE_NAMES`: string, time, queue, json) only where it means the module:
      in the module's own docstrings, in quotes or backquotes, after "import" or "module", before "module" or
      "package".

    Import statements are removed.
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
    """Return an uncased WordPiece tokenizer of at most `vocab_size` tokens; the same texts give the same tokenizer.

    Raises UserError if `vocab_size` is too small for the characters of the texts, each of which is a token at the
    beginning and a token inside a word.
    """
    texts = list(texts)
    tokenizer_model = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer_model.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer_model.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = sorted(set("".join(tokenizer_model.normalizer.normalize_str(text) for text in texts)) - set(" "))
    # The trainer numbers the tokens inside words in the order of a hash table with a random seed, and breaks ties by
    # number. Reserving these tokens fixes their numbers.
    reserved = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    if vocab_size < len(reserved):
        raise UserError(f"vocab_size={vocab_size} is too small for these texts: give at least {len(reserved)}")
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=reserved, show_progress=False)
    tokenizer_model.train_from_iterator(texts, trainer)
    vocabulary = dict(sorted(tokenizer_model.get_vocab().items(), key=lambda item: item[1]))
    tokenizer: PreTrainedTokenizerFast = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=128)
    return tokenizer


def demo_bert_config(vocab_size: int, labels: list[str]) -> BertConfig:
    """Return the configuration of the teacher: a BERT with 4 layers, 8 heads and hidden size 256."""
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
    """Yield (outermost class or function, docstring) of a module and its variants, parsed if there is source."""
    library = Path(sysconfig.get_path("stdlib"))
    for variant in (module, f"_{module}", f"_py{module}"):
        paths = [library / f"{variant}.py", *sorted((library / variant).rglob("*.py"))]
        sources = [
            path for path in paths if path.is_file() and not {"test", "tests"} & set(path.parts[len(library.parts) :])
        ]
        compiled = None if sources else _import_compiled(variant)
        docstrings = [_parse_docstrings(ast.parse(source.read_bytes())) for source in sources]
        for owner, text in chain(*docstrings, _inspect_docstrings(compiled) if compiled is not None else ()):
            yield owner or module, inspect.cleandoc(text)


def _parse_docstrings(node: ast.AST, owner: str = "") -> Iterator[tuple[str, str]]:
    """Yield (outermost class or function, docstring) of everything in a node, including nested functions."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        owner = owner or getattr(node, "name", "")
        text = ast.get_docstring(node)
        if text:
            yield owner, text
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from _parse_docstrings(child, owner)


def _import_compiled(module: str) -> ModuleType | None:
    """Return the module if it is written in C, else None; Python source is never run."""
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
    """Yield (class or function, docstring) of what a C module defines itself: no inherited text, no re-exports."""
    own_modules = {module.__name__.strip("_"), "os" if module.__name__ in {"posix", "nt"} else ""}
    yield from [("", module.__doc__)] if module.__doc__ else []
    for name, value in sorted(vars(module).items()):
        is_class = isinstance(value, type)
        defining_module = getattr(value, "__module__", None) or module.__name__
        if not (is_class or inspect.isroutine(value)) or defining_module.split(".")[0].strip("_") not in own_modules:
            continue
        members = sorted(vars(value).items()) if is_class else []
        for key, member in [(name, value), *members]:
            is_method = inspect.isroutine(member) or inspect.isdatadescriptor(member)
            if (member is value or (is_method and not key.startswith("__"))) and isinstance(member.__doc__, str):
                yield name, member.__doc__


def _hash_fraction(text: str) -> float:
    """Return a number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
