"""What XLA says in text alone: which collectives a compiled program has, and why one does not fit."""

import math
import re
from dataclasses import dataclass

# A result, the operation, and where in the program it is from, if that is told.
_INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<shapes>\(.*?\)|\S+) (?P<kind>[a-z][\w-]*)\((?P<rest>.*)$", re.MULTILINE
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.-]+) [^\n]*\{\n(?P<body>.*?)^\}", re.MULTILINE | re.DOTALL)
# What only gives other names to memory that is there.
_ALIASES = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "optimization-barrier",
    "copy-done", "constant",
}  # fmt: skip
# Of a program that is not compiled yet, results that nothing can be fused with so that they are never written.
_WRITTEN = {"dot", "convolution", "gather", "scatter", "sort"}
_COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) "
    r"(?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?P<start>-start)?\("
)
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
# Memory space 1 is a TPU's VMEM, on the chip itself.
_ARRAY_IN_HBM = re.compile(_ARRAY.pattern + r"(?!\{[^}]*S\(1\))")
_LOOP = re.compile(r" while\(.*?condition=%?([\w.-]+), body=%?([\w.-]+)(.*)")
# Parts of an operation's name that tell nothing to who wrote the program.
_NOISE = re.compile(r"jit\([^)]*\)/shard_map/|(cond/branch_\d+_fun|while/body|eval_jaxpr|vmap\(\)|closed_call)/")
# How many arrays are named.
_SHOWN = 3
_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NUMBER = r"([\d.]+)([BKMGT])"


@dataclass(frozen=True)
class Collectives:
    """All of one kind in a program, each counted once, also where it stands in a loop."""

    kind: str
    count: int
    # Of the results on one chip: what is reduced or gathered.
    bytes: int

    def sent(self, num_chips: int) -> float:
        """Bytes that each chip sends where they run as rings over all chips: no other way sends fewer."""
        share = (num_chips - 1) / num_chips
        factor = {"all-reduce": 2 * share, "reduce-scatter": share * num_chips, "collective-permute": 1.0}
        return self.bytes * factor.get(self.kind, share)


@dataclass(frozen=True)
class OutOfMemory:
    """What the compiler says of a program that does not fit on a chip."""

    # Bytes: what is needed, as far as the compiler went, and what there is.
    required: int
    available: int
    # The largest allocations, where the compiler lists them.
    largest: tuple[str, ...] = ()


def collectives(text: str) -> tuple[Collectives, ...]:
    """The collectives of a compiled program, from its HLO text, by kind."""
    found: dict[str, list[int]] = {}
    for match in _COLLECTIVE.finditer(text):
        sizes = [_num_bytes(*array) for array in _ARRAY.findall(match["shapes"])]
        both = match["kind"] in ("all-gather", "reduce-scatter", "collective-permute") or match["shapes"].startswith(
            "(("
        )
        if match["start"] and both:
            # The start of these gives operands and results, and for GPUs that of all kinds.
            sizes = sizes[len(sizes) // 2 :]
        found.setdefault(match["kind"], []).append(sum(sizes))
    return tuple(Collectives(kind, len(sizes), sum(sizes)) for kind, sizes in sorted(found.items()))


def out_of_memory(text: str) -> OutOfMemory | None:
    """The figures of an error message of the TPU compiler; None if it is about something else.

    It has two forms: one before memory is laid out, which tells totals, and one after, which lists allocations too.
    """
    if "RESOURCE_EXHAUSTED" not in text or "memory" not in text:
        return None
    if found := re.search(rf"\({_NUMBER}\) exceeds available HBM \({_NUMBER}\)", text):
        return OutOfMemory(_size(found[1], found[2]), _size(found[3], found[4]))
    if found := re.search(rf"Used {_NUMBER} of {_NUMBER} hbm", text):
        return OutOfMemory(_size(found[1], found[2]), _size(found[3], found[4]), _allocations(text))
    return None


def largest_arrays(text: str, count: int = _SHOWN, *, compiled: bool) -> tuple[str, ...]:
    """The largest arrays of a program in HLO text, each with its size and the operation that makes it, largest first.

    Of a program that is not compiled those are looked at which products, convolutions, gathers and sorts give, since
    most others are never written. Arrays of one shape count once.
    """
    inside_fusions = set(re.findall(r"calls=%?([\w.-]+)", text)) if compiled else set()
    sizes: dict[str, tuple[int, str]] = {}
    for computation in _COMPUTATION.finditer(text):
        if computation["name"] in inside_fusions:
            continue
        for found in _INSTRUCTION.finditer(computation["body"]):
            if _is_alias(found["kind"]) or not (compiled or found["kind"] in _WRITTEN):
                continue
            name = re.search(r'op_name="([^"]*)"', found["rest"])
            for dtype, dimensions in _ARRAY_IN_HBM.findall(found["shapes"]):
                sizes.setdefault(f"{dtype}[{dimensions}]", (_num_bytes(dtype, dimensions), name[1] if name else ""))
    largest = sorted(sizes.items(), key=lambda item: -item[1][0])[:count]
    return tuple(
        f"{shape} ({size / 2**30:.2f} GiB{', ' if name else ''}{_NOISE.sub('', name)})"
        for shape, (size, name) in largest
    )


def traffic(text: str, *, loops_once: bool = False) -> int:
    """Bytes that a compiled program moves, from its HLO text: each array that it makes in HBM is written and read once.

    A loop counts for each of its turns unless `loops_once`; one whose number of turns is not known when it is compiled
    counts once.
    """
    computations = {found["name"]: found["body"] for found in _COMPUTATION.finditer(text)}

    def of(body: str) -> int:
        total = 2 * _made(body)
        for condition, inner, rest in _LOOP.findall(body):
            total += of(computations[inner]) * (1 if loops_once else _turns(computations.get(condition, ""), rest))
        return total

    entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
    return 0 if entry is None else of(computations[entry[1]])


def _turns(condition: str, rest: str) -> int:
    """How often a loop turns, as the compiler says beside it, or by the only number in its condition; 1 if unknown."""
    numbers = re.findall(r'"known_trip_count":\{"n":"(\d+)"', rest) or re.findall(
        r"s32\[\]\S* constant\((\d+)\)", condition
    )
    return int(numbers[0]) if len(numbers) == 1 else 1


def _made(body: str) -> int:
    """Bytes of the arrays in HBM that a computation makes, but for those that it changes in place."""
    made = (found for found in _INSTRUCTION.finditer(body) if not _is_alias(found["kind"]))
    # In the names of fusions for GPUs the dashes are underscores.
    names = ((found["shapes"], f"{found['name']} {found['kind']}".replace("_", "-")) for found in made)
    shapes = (shapes for shapes, name in names if "dynamic-update-slice" not in name)
    return sum(_num_bytes(*array) for text in shapes for array in _ARRAY_IN_HBM.findall(text))


def _is_alias(kind: str) -> bool:
    """Whether an operation makes nothing; of one that runs beside others, the end counts and the start does not."""
    return kind in _ALIASES or kind.endswith("-start")


def _allocations(text: str) -> tuple[str, ...]:
    """'Shape' of each allocation that is listed, with its size and the operation that makes it."""
    entries = re.split(r"\n\s*\d+\. Size: ", text)[1:]
    told = []
    for entry in entries:
        shape = re.search(r"Shape: (\S+)", entry)
        name = re.search(r'op_name="([^"]*)"', entry)
        if shape is not None:
            plain = re.sub(r"\{.*", "", shape[1])
            told.append(f"{plain} ({entry.split()[0]}{f', {name[1]}' if name else ''})")
    return tuple(told)


def _size(number: str, unit: str) -> int:
    return round(float(number) * _UNITS[unit])


def _num_bytes(dtype: str, dimensions: str) -> int:
    bits = re.search(r"\d+", dtype)
    cells = math.prod(int(side) for side in dimensions.split(",") if side)
    return -(-cells * (8 if bits is None else int(bits[0])) // 8)
