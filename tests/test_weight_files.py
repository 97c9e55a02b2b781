"""Weights from files of others: all formats, and that no file runs code, takes the memory or ends in a traceback."""

import io
import json
import pickle
import struct
import sys
import tracemalloc
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from foreign_files import (
    Call,
    Named,
    Python2Pickler,
    Storage,
    legacy_bytes,
    parameter,
    pickled,
    state_dict,
    tensor,
    write_pkl,
    write_torch_legacy,
    write_torch_zip,
    zip_bytes,
)
from safetensors.numpy import save, save_file

from mrcnn_jax.checkpoints.weight_files import WeightFile, read_weights
from mrcnn_jax.errors import UserError
from mrcnn_jax.pickles.arrays import CONSTRUCTORS
from mrcnn_jax.pickles.reader import Name, NotData, read_pickle

ONES = np.ones(8, np.float32)
MEGABYTE = 2**20


def some_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "conv.weight": rng.normal(size=(4, 3, 2, 2)).astype(np.float32),
        "conv.bias": rng.normal(size=4).astype(np.float16),
        "norm.num_batches_tracked": np.array(7, np.int64),
        "norm.mask": np.array([True, False]),
        "none": np.zeros((0, 3), np.float64),
    }


def assert_same(found: WeightFile, expected: dict[str, np.ndarray]) -> None:
    assert list(found.arrays) == list(expected)
    for name, array in expected.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)


def namespace() -> Call:
    return Call(
        "argparse.Namespace", state={"lr": 0.02, "device": Call("torch.device", "cuda"), "d": Named("torch.half")}
    )


# What training scripts save, and what of it is no weight.
WRAPPED = {
    "bare": (lambda tensors: tensors, ()),
    "torchvision": (
        lambda tensors: {
            "model": tensors,
            "optimizer": {"state": {0: {"momentum_buffer": tensors["conv.bias"]}}, "param_groups": [{"params": [0]}]},
            "lr_scheduler": {"milestones": Counter([16, 22]), "gamma": 0.1, "_last_lr": [np.float64(0.02)]},
            "args": namespace(),
            "epoch": 25,
        },
        ("optimizer", "lr_scheduler", "args", "epoch"),
    ),
    "state_dict": (lambda tensors: {"epoch": 3, "state_dict": tensors}, ("epoch",)),
    "mixed": (lambda tensors: {"params": {**tensors, "version": 2}}, ("params.version",)),
    "parameters": (lambda tensors: {"model_state_dict": {k: parameter(t) for k, t in tensors.items()}}, ()),
    "data_parallel": (lambda tensors: {f"module.{name}": value for name, value in tensors.items()}, ()),
}


@pytest.mark.parametrize("write", [write_torch_zip, write_torch_legacy])
@pytest.mark.parametrize("case", WRAPPED)
def test_torch(tmp_path, write, case):
    wrap, other = WRAPPED[case]
    found = read_weights(write(tmp_path / "model.any", some_arrays(), wrap))
    assert_same(found, some_arrays())
    assert found.other == other
    assert found.metadata == {}


@pytest.mark.parametrize("bytes_of", [zip_bytes, legacy_bytes])
def test_tensors_are_views_into_storages(tmp_path, bytes_of):
    values = np.arange(24, dtype=np.float32)
    half = np.array([1, -2.5], ml_dtypes.bfloat16)
    whole, brain = Storage("a", values), Storage("b", half)
    weights = {
        "transposed": tensor(whole, 0, (6, 4), (1, 6)),
        "part": tensor(whole, 8, (2, 3), (6, 1)),
        "column": tensor(whole, 2, (4,), (6,)),
        "brain": tensor(brain, 0, (2,), (1,)),
        "older": Call("torch._utils._rebuild_tensor", whole, 0, (24,), (1,)),
        "size": Call("torch.Size", (1, 2)),
    }
    (tmp_path / "views.pt").write_bytes(bytes_of(weights, [whole, brain]))
    found = read_weights(tmp_path / "views.pt")
    grid = values.reshape(4, 6)
    expected = {"transposed": grid.T, "part": grid[1:3, 2:5], "column": grid[:, 2], "brain": half, "older": values}
    assert_same(found, expected)
    assert found.other == ("size",)
    assert np.shares_memory(found.arrays["part"], found.arrays["older"])


def test_a_storage_of_the_older_format_may_be_a_part_of_another(tmp_path):
    values = np.arange(10, dtype=np.int32)
    whole, part = Storage("a", values), Storage("a", values, view=("b", 4, 3))
    weights = {"part": tensor(part, 1, (2,), (1,)), "whole": tensor(whole, 0, (10,), (1,))}
    (tmp_path / "parts.pth").write_bytes(legacy_bytes(weights, [whole]))
    assert_same(read_weights(tmp_path / "parts.pth"), {"part": values[5:7], "whole": values})


@pytest.mark.parametrize(("python2", "protocol"), [(False, p) for p in range(6)] + [(True, p) for p in range(3)])
def test_pickles_of_arrays(tmp_path, python2, protocol):
    arrays = some_arrays()
    order = np.asfortranarray(arrays["conv.weight"][0, 0])
    arrays = {**arrays, "order": order, "large": np.ones((30, 100), np.float32)}
    foreign = {**arrays, "big_endian": arrays["conv.bias"].astype(">f2")}
    arrays["big_endian"] = arrays["conv.bias"]
    for wrap, other in (
        (lambda found: found, ()),
        (lambda found: {"model": found, "__author__": "Caffe2"}, ("__author__",)),
        (lambda found: {"blobs": {**found, "lr": np.float32(1)}, "cfg": "A: b\n"}, ("cfg", "blobs.lr")),
    ):
        found = read_weights(write_pkl(tmp_path / "a.pkl", foreign, wrap, protocol=protocol, python2=python2))
        assert_same(found, arrays)
        assert found.other == other


def test_npz_and_safetensors(tmp_path):
    arrays = some_arrays()
    np.savez(tmp_path / "plain", **arrays)
    np.savez_compressed(tmp_path / "small", **arrays, zeros=np.zeros(10**6, np.float32))
    assert_same(read_weights(tmp_path / "plain.npz"), arrays)
    assert_same(read_weights(tmp_path / "small.npz"), {**arrays, "zeros": np.zeros(10**6, np.float32)})
    arrays = dict(sorted({**arrays, "brain": np.ones(3, ml_dtypes.bfloat16)}.items()))
    save_file(arrays, tmp_path / "named.pth", {"format": "pt"})
    found = read_weights(tmp_path / "named.pth")
    assert_same(WeightFile(dict(sorted(found.arrays.items()))), arrays)
    assert found.metadata == {"format": "pt"}
    save_file(arrays, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors").metadata == {}


@pytest.mark.parametrize("legacy", [False, True])
def test_files_that_torch_wrote(tmp_path, legacy):
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.AdamW(net.parameters())
    content = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "transposed": torch.ones(2, 3).t()}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    found = read_weights(tmp_path / "a.pth")
    assert_same(found, {name: value.numpy() for name, value in net.state_dict().items()})
    assert found.other == ("optimizer", "transposed")


PLAIN = [
    None, True, 0, -1, 255, 65535, 2**31, -(2**40), 2**100, -(2**3000), 1.5, float("inf"), "", "ümläut\n'\"\\\u20ac",
    "x" * 300, b"", b"\x00\xff", b"y" * 300, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], [1], list(range(1100)), {},
    {"a": 1}, {i: str(i) for i in range(1100)}, {1, 2}, frozenset("ab"), OrderedDict(a=1), Counter("aab"),
    defaultdict(list, {"a": [1]}), [(1, [2, {"a": {"b": None}}])],
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_what_pickle_makes_of_them(protocol):
    shared = ["shared"]
    for value in [*PLAIN, PLAIN, bytearray(b"ab"), [shared, shared]]:
        data = pickle.dumps(value, protocol)
        found, end = read_pickle(b"xx" + data + b"rest", CONSTRUCTORS, start=2)
        assert found == value
        assert end == 2 + len(data)


@pytest.mark.parametrize("protocol", range(3))
def test_strings_of_python_2_are_latin_1(protocol):
    texts = ["", "plain", "'", '"', "'\"", "\\x41\\", "\n\r\t\x00\x7f", "é\xff", "x" * 300]
    assert read_pickle(pickled(texts, protocol, Python2Pickler), {})[0] == texts


def test_a_name_that_is_not_called_is_harmless():
    assert read_pickle(pickled([Named("os.system")]), {})[0] == [Name("os", "system")]


def test_a_pickle_may_be_no_longer_than_allowed():
    copies = b"](" + b"K\x01" * 50 + b"eq\x00c__builtin__\nset\nq\x01" + b"h\x01h\x00\x85R" * 100
    for body in (b"\x8f" * 1000, copies):
        with pytest.raises(NotData, match="too long"):
            read_pickle(b"\x80\x04" + body + b".", CONSTRUCTORS, max_operations=1000)


WATCHED = {
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pickle.find_class",
    "import", "socket.connect", "shutil.rmtree", "os.remove", "ctypes.dlopen",
}  # fmt: skip
watch = {"on": False, "seen": []}
sys.addaudithook(lambda event, _: watch["seen"].append(event) if watch["on"] and event in WATCHED else None)


@pytest.fixture
def refused(tmp_path):
    """Reads what has to be refused in one line, with all the words in it, without running anything or much memory."""
    read_weights(write_torch_zip(tmp_path / "sound.pth", {"a": ONES}))  # Imports what reading needs.

    def refused(content: bytes | Path, *words: str) -> None:
        path = content if isinstance(content, Path) else tmp_path / "hostile.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        tracemalloc.start()
        watch.update(on=True, seen=[])
        try:
            with pytest.raises(UserError) as told:
                read_weights(path)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            watch["on"] = False
            tracemalloc.stop()
        message = str(told.value)
        assert message.isprintable()
        assert len(message) < 400
        for word in (str(path), *words):
            assert word in message
        assert "TypeCheckError" not in message
        assert not watch["seen"]
        assert not (tmp_path / "canary").exists()
        assert peak < 64 * MEGABYTE

    return refused


# Calls that run code, read a file or fetch something, given the path of a file that must not come to be.
CALLS = {
    "posix.system": lambda canary: Call("posix.system", f"touch {canary}"),
    "os.system": lambda canary: Call("os.system", f"touch {canary}"),
    "nt.system": lambda canary: Call("nt.system", f"touch {canary}"),
    "builtins.eval": lambda canary: Call("builtins.eval", f"open({str(canary)!r}, 'w')"),
    "__builtin__.eval": lambda canary: Call("__builtin__.eval", f"open({str(canary)!r}, 'w')"),
    "builtins.exec": lambda canary: Call("builtins.exec", f"open({str(canary)!r}, 'w')"),
    "builtins.open": lambda canary: Call("builtins.open", str(canary), "w"),
    "builtins.getattr": lambda canary: Call(Call("builtins.getattr", Named("os.path"), "system"), "true"),
    "builtins.__import__": lambda canary: Call("builtins.__import__", "antigravity"),
    "importlib.import_module": lambda canary: Call("importlib.import_module", "antigravity"),
    "subprocess.Popen": lambda canary: Call("subprocess.Popen", ["touch", str(canary)]),
    "operator.attrgetter": lambda canary: Call(Call("operator.attrgetter", "system"), Named("os.path")),
    "functools.partial": lambda canary: Call(Call("functools.partial", Named("os.system")), f"touch {canary}"),
    "runpy.run_path": lambda canary: Call("runpy.run_path", str(canary)),
    "pickle.loads": lambda canary: Call("pickle.loads", b"cos\nsystem\n(S'true'\ntR."),
    "numpy.load": lambda canary: Call("numpy.load", str(canary), None, True),
    "numpy.memmap": lambda canary: Call("numpy.memmap", str(canary), "u1", "w+", 0, (10,)),
    "numpy.zeros": lambda canary: Call("numpy.zeros", 2**40),
    "torch.load": lambda canary: Call("torch.load", str(canary)),
    "torch.storage._load_from_bytes": lambda canary: Call("torch.storage._load_from_bytes", b"cos\nsystem\n."),
    "torch.hub.load": lambda canary: Call("torch.hub.load", "a/b", "c"),
    "builtins.bytearray.fromhex": lambda canary: Call("builtins.bytearray.fromhex", "00"),
    "builtins.range": lambda canary: Call("builtins.range", 2**60),
    "Sequential": lambda canary: Call("torch.nn.modules.container.Sequential", state={"training": True}),
    "codec": lambda canary: Call("_codecs.encode", "x" * 99, "zip"),
}


@pytest.mark.parametrize("carrier", ["pkl", "zip", "legacy", "legacy_head"])
@pytest.mark.parametrize("name", CALLS)
def test_a_pickle_that_calls_what_is_no_data(refused, tmp_path, name, carrier):
    payload = CALLS[name](tmp_path / "canary")
    tensors, storages = state_dict({"a": ONES})
    value = {"model": tensors, "extra": [payload]}
    content = {
        "pkl": lambda: pickled({"model": {"a": ONES}, "extra": payload}),
        "zip": lambda: zip_bytes(value, storages),
        "legacy": lambda: legacy_bytes(value, storages),
        "legacy_head": lambda: legacy_bytes(tensors, storages, system=payload),
    }
    refused(content[carrier](), name, "not data", "save the model's state_dict alone")


def laughs(depth: int = 60) -> bytes:
    """A tuple of two tuples of two ... of which a few bytes make 2**depth."""
    return b")" + b"2\x86" * depth


ARRAY = pickled(ONES)[2:-1]
HUGE_AXIS = b"\x8b" + struct.pack("<i", 10**5) + b"\x7f" * 10**5
RECONSTRUCT = pickled(Call("numpy._core.multiarray._reconstruct", Named("numpy.ndarray"), (0,), b"b"))[2:-1]
FLOAT = pickled(np.dtype(np.float32))[2:-1]
ABCD = b"\x89C\x04abcdtb"  # The end of an array's state: four bytes in C order.
SET = b"c__builtin__\nset\n"


def protocol2(body: bytes) -> bytes:
    """A dictionary whose one entry `model` is a dictionary with an array `a` and whatever `body` does to it."""
    return b"\x80\x02}X\x05\x00\x00\x00model}X\x01\x00\x00\x00a" + ARRAY + b"s" + body + b"s."


PICKLES = {
    "stack_global": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "posix.system"),
    "stack_global_no_text": (protocol2(b"K\x01K\x01\x93"), "a name is not text"),
    "protocol_0": (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
    "name_of_many_lines": (pickled(Call("a\x1b[2J\r.\x00b")), "asks for a?[2J"),
    "inst": (b"(S'true'\nios\nsystem\n.", "INST"),
    "obj": (b"(cos\nsystem\nS'true'\no.", "OBJ"),
    "newobj": (b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.", "os.system"),
    "newobj_ex": (b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.", "NEWOBJ_EX"),
    "extension": (protocol2(b"\x82\x01"), "EXT1"),
    "persistent_text": (b"(Pabc\n.", "PERSID"),
    "persistent": (protocol2(b"K\x01Q"), "outside of its pickle"),
    "next_buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "readonly_buffer": (b"\x80\x05N\x98.", "READONLY_BUFFER"),
    "call_of_a_value": (b"\x80\x02X\x09\x00\x00\x00os.system)R.", "calls what has no name"),
    "call_without_tuple": (b"\x80\x02cos\nsystem\nNR.", "calls what has no name"),
    "build_on_a_name": (protocol2(b"cos\nsystem\n}b"), "Inert is missing"),
    "build_on_text": (protocol2(b"X\x01\x00\x00\x00b}b"), "Inert is missing"),
    "build_on_a_dictionary": (b"\x80\x02}}b.", "Inert is missing"),
    "memo_absent": (protocol2(b"j\xff\xff\xff\x7f"), "refers to item"),
    "huge_bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc", "cut short"),
    "impossible_bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**64 - 1) + b"abc", "cut short"),
    "huge_text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"abc", "cut short"),
    "huge_bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc", "cut short"),
    "huge_string": (b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"abc", "cut short"),
    "negative_string": (b"\x80\x02T" + struct.pack("<i", -1) + b"abc", "cut short"),
    "huge_integer": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc", "cut short"),
    "integer_of_many_digits": (b"(L" + b"9" * 100_000 + b"L\n.", "LONG"),
    "integer_that_is_none": (b"(Iabc\n.", "INT"),
    "bad_escape": (b"(S'\\q'\n.", "STRING"),
    "no_quotes": (b"(Sabc\n.", "STRING"),
    "not_utf_8": (b"\x80\x04\x8c\x02\xff\xff.", "SHORT_BINUNICODE"),
    "unknown_operation": (b"\x80\x02\xff.", "0xff"),
    "no_stop": (b"\x80\x02}", "cut short"),
    "no_argument": (b"\x80\x02}M\x01", "cut short"),
    "stack_empty": (b"\x80\x020.", "a mark is missing"),
    "stop_on_nothing": (b"\x80\x02.", "empty stack"),
    "memo_of_nothing": (b"\x80\x02q\x00.", "is missing"),
    "mark_missing": (b"\x80\x02]e.", "a mark is missing"),
    "odd_items": (b"\x80\x02}(K\x01u.", "a key has no value"),
    "append_to_a_tuple": (b"\x80\x02)K\x01a.", "list is missing"),
    "item_of_a_list": (b"\x80\x02]K\x01K\x01s.", "dict is missing"),
    "add_to_a_list": (b"\x80\x04](K\x01\x90.", "set is missing"),
    "key_list": (b"\x80\x02}]K\x01s.", "a list as a key"),
    "key_in_a_set": (protocol2(SET + b"]]a\x85R"), "a list as a key"),
    "list_that_holds_itself": (b"\x80\x02]q\x00h\x00a.", "holds a list"),
    "laughs": (b"\x80\x02" + laughs() + b".", "holds a tuple"),
    "laughs_as_key": (protocol2(b"}" + laughs() + b"Ns"), "a tuple as a key"),
    "laughs_as_shape": (protocol2(RECONSTRUCT + b"(K\x01" + laughs() + FLOAT + b"\x89C\x00tb"), "damaged"),
    "laughs_as_dtype": (protocol2(b"cnumpy\ndtype\n" + laughs() + b"\x85R"), "dtype tuple"),
    "laughs_as_order": (protocol2(FLOAT + b"(K\x03" + laughs() + b"NNNNNNtb"), "byte order"),
    "laughs_as_codec": (protocol2(b"c_codecs\nencode\nX\x01\x00\x00\x00a" + laughs() + b"\x86R"), "codec"),
    "laughs_as_arguments": (protocol2(b"c_codecs\nencode\n" + laughs() + b"R"), "codec"),
    "deep": (b"\x80\x02)" + b"\x85" * 3000 + b".", "holds a tuple"),
    "deep_as_key": (b"\x80\x02})" + b"\x85" * 3000 + b"Ns.", "a tuple as a key"),
    "deep_marks": (b"(" * 3000, "cut short"),
    "copies_of_bytes": (
        b"\x80\x02X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x00c_codecs\nencode\nq\x01"
        + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 1000 + b".",
        "unfolds to more than its size",
    ),
    "blank_array": (protocol2(b"X\x01\x00\x00\x00b" + RECONSTRUCT + b"s"), "damaged"),
    "array_that_is_none": (protocol2(b"cnumpy.core.multiarray\n_reconstruct\ncos\nsystem\n\x85R"), "none of NumPy's"),
    "array_state_short": (protocol2(RECONSTRUCT + b"(K\x01)tb"), "cannot take"),
    "array_state_number": (protocol2(RECONSTRUCT + b"K\x01b"), "cannot take"),
    "array_bytes_missing": (protocol2(RECONSTRUCT + b"(K\x01K\x08\x85" + FLOAT + ABCD), "has 4 bytes"),
    "array_huge": (
        protocol2(RECONSTRUCT + b"(K\x01\x8a\x06" + (2**40).to_bytes(6, "little") + b"\x85" + FLOAT + ABCD),
        "(1099511627776,) has 4 bytes",
    ),
    "array_negative": (protocol2(RECONSTRUCT + b"(K\x01J\xff\xff\xff\xff\x85" + FLOAT + ABCD), "negative"),
    "array_of_many_axes": (
        protocol2(RECONSTRUCT + b"(K\x01(" + b"K\x01" * 99 + b"t" + FLOAT + ABCD), "more than 32 axes"
    ),
    "array_huge_axes": (
        protocol2(RECONSTRUCT + b"(K\x01(" + HUGE_AXIS * 2 + b"t" + FLOAT + ABCD),
        "absurd size",
    ),
    "objects": (pickled({"a": np.array([{}, None])}), "dtype O8, which is no number"),
    "texts": (pickled({"a": np.array(["abc"])}), "dtype U3, which is no number"),
    "records": (pickled({"a": np.zeros(2, [("x", "f4")])}), "dtype V4, which is no number"),
    "complex": (pickled({"a": np.zeros(2, complex)}), "dtype c16, which is no number"),
    "no_dictionary": (pickled([ONES]), "holds a list"),
    "no_arrays": (pickled({"model": {"a": 1}}), "holds no arrays"),
    "empty_dictionary": (pickled({}), "holds no arrays"),
    "name_is_a_number": (pickled({1: ONES}), "no name that is text"),
    "name_of_two_lines": (pickled({"a\nb": ONES}), "cannot be printed"),
    "nan": (pickled({"a": ONES, "b": ONES * np.nan}), "NaN or infinite values in 'b'"),
    "infinite": (pickled({"model": {"a": -ONES * np.inf}}), "NaN or infinite values in 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_is_broken_or_hostile(refused, name):
    refused(*PICKLES[name])


def one_tensor(offset=0, size=(8,), strides=(1,), **storage) -> tuple:
    """A state_dict of one tensor, and its storage."""
    whole = Storage("0", ONES, **storage)
    return {"a": tensor(whole, offset, size, strides)}, [whole]


TENSORS = {
    "larger_than_its_storage": (one_tensor(size=(9,)), "does not fit its storage of 8 numbers"),
    "beyond_its_storage": (one_tensor(offset=1), "does not fit"),
    "stride_0": (one_tensor(size=(10**12,), strides=(0,)), "does not fit"),
    "stride_0_many_axes": (one_tensor(size=(8,) * 30, strides=(0,) * 30), "does not fit"),
    "stride_too_large": (one_tensor(size=(2, 2), strides=(8, 1)), "does not fit"),
    "stride_negative": (one_tensor(size=(8,), strides=(-1,)), "negative"),
    "offset_negative": (one_tensor(offset=-1, size=(4,)), "negative"),
    "size_negative": (one_tensor(size=(-8,)), "negative"),
    "size_no_integer": (one_tensor(size=(8.0,)), "size"),
    "size_no_tuple": (one_tensor(size=8), "no shape"),
    "strides_missing": (one_tensor(strides=()), "fewer strides"),
    "empty_but_huge": (one_tensor(size=(2**61, 2**61, 0), strides=(0, 0, 0)), "read"),
    "storage_shorter_than_declared": (one_tensor(size=(9,), count=9), "storage 0 has 32 bytes"),
    "storage_of_absurd_count": (one_tensor(size=(9,), count=2**60), "storage 0 has 32 bytes"),
    "storage_of_negative_count": (one_tensor(count=-8), "negative"),
    "storage_of_complex": (one_tensor(kind="ComplexFloatStorage"), "torch.ComplexFloatStorage"),
    "storage_of_another_module": (one_tensor(kind="cuda.FloatStorage"), "torch.cuda.FloatStorage"),
    "no_storage": (({"a": tensor(Named("a.b"), 0, (1,), (1,))}, []), "no storage"),
    "parameter_of_nothing": (({"a": parameter(Named("a.b"))}, []), "no tensor"),
    "not_finite": (({"a": tensor(Storage("0", ONES * np.nan), 0, (8,), (1,))}, [Storage("0", ONES * np.nan)]), "NaN"),
    "far_too_many": (
        ({str(i): tensor(Storage("0", np.ones(2**18)), 0, (2**18,), (1,)) for i in range(50)},
         [Storage("0", np.ones(2**18))]),
        "more numbers in its arrays",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bytes_of", [zip_bytes, legacy_bytes])
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_does_not_fit(refused, name, bytes_of):
    (value, storages), *words = TENSORS[name]
    refused(bytes_of(value, storages), *words)


def persistent(*identity: object) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + pickled(identity)[2:-1] + b"Qs."


IDENTITIES = {
    "text": (b"\x80\x02X\x07\x00\x00\x00storageQ.", "no storage"),
    "number": (b"\x80\x02K\x01Q.", "cannot take"),
    "short": (persistent("storage", Named("torch.FloatStorage")), "cannot take"),
    "file": (persistent("file", Named("torch.FloatStorage"), "0", "cpu", 8), "no storage"),
    "key": (persistent("storage", Named("torch.FloatStorage"), 0, "cpu", 8), "no storage"),
    "class": (persistent("module", Named("a.Net"), "net.py", "import os"), "holds a whole model"),
    "laughs": (b"\x80\x02" + laughs() + b"Q.", "cannot take"),
    "laughs_in_it": (b"\x80\x02(" + laughs() * 5 + b"tQ.", "no storage"),
}


@pytest.mark.parametrize("bytes_of", [zip_bytes, legacy_bytes])
@pytest.mark.parametrize("name", IDENTITIES)
def test_a_reference_to_what_is_no_storage(refused, name, bytes_of):
    body, *words = IDENTITIES[name]
    refused(bytes_of(body, []), *words)


def damaged_zip(edit: Callable[[zipfile.ZipFile], object]) -> bytes:
    """A torch file of 100 kB after a change of its zip: `edit` gets the archive before its directory is written."""
    stream = io.BytesIO(zip_bytes(*state_dict({"a": np.ones(25_000, np.float32)})))
    with zipfile.ZipFile(stream, "a") as archive:
        edit(archive)
        archive._didModify = True
    return stream.getvalue()


def overlapping(archive: zipfile.ZipFile) -> None:
    archive.filelist.extend([archive.getinfo("archive/data/0")] * 1000)


def encrypted(archive: zipfile.ZipFile) -> None:
    archive.getinfo("archive/data/0").flag_bits |= 1


def size_of_another(archive: zipfile.ZipFile) -> None:
    info = archive.getinfo("archive/data/0")
    info.file_size = info.compress_size = 2**40


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def deflated() -> bytes:
    zeros = np.zeros(70 * MEGABYTE // 4, np.float32)
    return zip_bytes(*state_dict({"a": zeros}), compression=zipfile.ZIP_DEFLATED)


def torch_script() -> bytes:
    return damaged_zip(lambda archive: archive.writestr("archive/constants.pkl", b"\x80\x02)."))


def npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def npy_header(text: str, content: bytes = b"") -> bytes:
    header = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def tensors_file(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def entry(start: int, end: int, shape: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FILES = {
    "empty": (lambda: b"", "is empty"),
    "web_page": (lambda: b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
    "web_page_with_mark": (lambda: b"\xef\xbb\xbf<html>", "is a web page"),
    "xml": (lambda: b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
    "lfs": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n", "Git LFS pointer"),
    "text": (lambda: b"not found", "is of no format that is read"),
    "text_like_a_pickle": (lambda: b"cannot be found", "cut short"),
    "image": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(99), "is of no format that is read"),
    "nothing_but_zeros": (lambda: bytes(1000), "is of no format that is read"),
    "overlapping_members": (lambda: damaged_zip(overlapping), "members are larger than itself"),
    "encrypted": (lambda: damaged_zip(encrypted), "encrypted"),
    "member_of_another_size": (lambda: damaged_zip(size_of_another), "members are larger than itself"),
    "torch_script": (torch_script, "TorchScript"),
    "zip_bomb": (deflated, "compressed zip"),
    "zip_of_something": (lambda: damaged_zip(lambda a: a.writestr("b/data.pkl", b"")), "2 data.pkl"),
    "big_endian": (lambda: zip_bytes(*one_tensor(), byte_order=b"big"), "big-endian"),
    "storage_missing": (lambda: zip_bytes(one_tensor()[0], []), "has no storage 0"),
    "crc": (lambda: flipped(zip_bytes(*one_tensor()), zip_bytes(*one_tensor()).index(ONES.tobytes()) + 2), "CRC"),
    "legacy_big_endian": (lambda: legacy_bytes(*one_tensor(), system={"little_endian": False}), "big-endian"),
    "legacy_system_no_dictionary": (lambda: legacy_bytes(*one_tensor(), system=[1]), "protocol"),
    "legacy_storage_missing": (lambda: legacy_bytes(one_tensor()[0], []), "not those that its tensors need"),
    "legacy_keys_no_text": (lambda: legacy_bytes(one_tensor()[0], [Storage([], ONES)]), "not those"),
    "legacy_two_types": (
        lambda: legacy_bytes(
            {"a": tensor(Storage("0", ONES), 0, (1,), (1,)), "b": tensor(Storage("0", np.ones(4)), 0, (1,), (1,))},
            [Storage("0", ONES)],
        ),
        "two types",
    ),
    "legacy_count_negative": (
        lambda: legacy_bytes(*one_tensor()).replace(struct.pack("<q", 8), struct.pack("<q", -8)), "storage 0 has -8"
    ),
    "legacy_count_huge": (
        lambda: legacy_bytes(*one_tensor()).replace(struct.pack("<q", 8), struct.pack("<q", 2**62)), "storage 0 has"
    ),
    "legacy_view_too_large": (lambda: legacy_bytes(*one_tensor(view=("b", 4, 5))), "larger than it"),
    "npz_objects": (lambda: npz(a=npy(np.array([{}]), True)), "'a' of dtype object, which is no number"),
    "npz_text": (lambda: npz(a=npy(np.array(["x"]))), "'a' of dtype <U1"),
    "npz_bomb": (lambda: npz(a=npy(np.zeros(70 * MEGABYTE, np.uint8))), "unfolds to"),
    "npz_of_many": (lambda: npz(**{str(i): npy(np.zeros(10 * MEGABYTE, np.uint8)) for i in range(7)}), "unfolds to"),
    "npz_huge_shape": (
        lambda: npz(a=npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}\n")), "of shape"
    ),
    "npz_negative_shape": (
        lambda: npz(a=npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1)}\n", bytes(4))), "negative"
    ),
    "npz_deep_header": (lambda: npz(a=npy_header("-" * 9000 + "1")), "damaged"),
    "npz_header_of_brackets": (lambda: npz(a=npy_header("(" * 9000)), "damaged"),
    "npz_huge_header": (
        lambda: npz(a=b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 60 * MEGABYTE), "no array of numbers"
    ),
    "npz_no_array": (lambda: npz(a=b"hello"), "damaged"),
    "npz_nan": (lambda: npz(a=npy(ONES), b=npy(ONES * np.inf)), "NaN or infinite values in 'b'"),
    "safetensors_overlap": (
        lambda: tensors_file({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)), "SafetensorError"
    ),
    "safetensors_outside": (lambda: tensors_file({"a": entry(0, 4000, [1000])}, bytes(12)), "SafetensorError"),
    "safetensors_shape": (lambda: tensors_file({"a": entry(0, 8, [2**60, 2**60])}, bytes(8)), "SafetensorError"),
    "safetensors_hole": (lambda: tensors_file({"a": entry(4, 8, [1])}, bytes(8)), "SafetensorError"),
    "safetensors_header_length": (lambda: tensors_file({"a": entry(0, 4, [1])}, bytes(4), 2**60), "no format"),
    "safetensors_no_json": (lambda: tensors_file(b"{" * 5000, bytes(8)), "SafetensorError"),
    "safetensors_complex": (lambda: tensors_file({"a": entry(0, 8, [1], "C64")}, bytes(8)), "'a' of dtype complex64"),
    "safetensors_float8": (lambda: tensors_file({"a": entry(0, 8, [8], "F8_E4M3")}, bytes(8)), "float8"),
    "safetensors_nothing": (lambda: tensors_file({}, b"x"), "SafetensorError"),
    "safetensors_nan": (lambda: save({"a": np.full(3, np.nan, ml_dtypes.bfloat16)}), "NaN or infinite values in 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_broken_hostile_or_something_else(refused, name):
    make, *words = FILES[name]
    refused(make(), *words)


WHOLE = {
    "zip": lambda: zip_bytes(*one_tensor()),
    "legacy": lambda: legacy_bytes(*one_tensor()),
    "pkl": lambda: pickled({"model": {"a": ONES}}),
    "python2": lambda: pickled({"a": ONES}, 0, Python2Pickler),
    "npz": lambda: npz(a=npy(ONES)),
    "safetensors": lambda: save({"a": ONES}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_short_anywhere(refused, tmp_path, name):
    whole = WHOLE[name]()
    (tmp_path / "whole").write_bytes(whole)
    assert read_weights(tmp_path / "whole").arrays.keys() == {"a"}
    for length in {*range(0, len(whole), 19), len(whole) - 1}:
        refused(whole[:length])


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_with_any_byte_changed_is_read_or_refused(tmp_path, name):
    whole, rng = WHOLE[name](), np.random.default_rng(0)
    path = tmp_path / "changed"
    for _ in range(60):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        with suppress(UserError):
            assert all(np.isfinite(array).all() for array in read_weights(path).arrays.values())


def test_what_is_no_file(refused, tmp_path, monkeypatch):
    refused(tmp_path, "is a folder")
    refused(tmp_path / "gone.pth", "does not exist")
    refused(Path("/dev/null"), "is no file")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(tmp_path / "sound.pth", "Permission denied")
