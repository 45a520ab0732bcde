"""Figures of compiled Triton programs, read from the machine code: registers, spills, loads, paths.

Nothing here needs a GPU: Triton compiles for a target by name, with the assembler and the
disassembler of its own wheel.
"""

from __future__ import annotations

import heapq
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

KINDS = {
    **{torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"},
    **{torch.float64: "*fp64", torch.int64: "*i64", torch.int32: "*i32", torch.int8: "*i8"},
    torch.bool: "*i1",
}


class Launches:
    """Stands in for a program and writes down what it is launched with."""

    def __init__(self, program, launched):
        self.program = program
        self.launched = launched

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            given = dict(zip(self.program.arg_names, args, strict=False)) | kwargs
            self.launched.append((self.program, grid, given))

        return launch


def compiled(program, given, capability=90):
    """A launch as Triton would compile it: by dtype, ones as constants, and what 16 divides."""
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(program.params):
        name, value = parameter.name, given[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        if isinstance(value, torch.Tensor):
            signature[name] = KINDS[value.dtype]
        else:
            assert isinstance(value, float) or value < 2**31
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    options = {name: given[name] for name in ("num_warps", "num_stages") if name in given}
    source = ASTSource(program, signature, constants, attributes)
    return compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@dataclass(frozen=True)
class Binary:
    """What `cuobjdump` says of a compiled program.

    Attributes:
        registers: per thread.
        stack: bytes per thread, of which spilled registers are a part.
        blocks: instructions of each basic block, without NOPs, in the order of the code.
        successors: which blocks may follow each.
    """

    registers: int
    stack: int
    blocks: tuple[tuple[str, ...], ...]
    successors: tuple[tuple[int, ...], ...]

    @property
    def opcodes(self) -> Counter[str]:
        """How often each instruction stands in the code, wherever."""
        return Counter(opcode(line) for block in self.blocks for line in block)

    def loop(self, mark: str) -> list[str]:
        """The shortest way round a loop through the block with most instructions `mark`.

        Branches that are rarely taken are detours, so this is the path of a usual round.
        """
        count = [sum(opcode(line).startswith(mark) for line in block) for block in self.blocks]
        start = max(range(len(count)), key=count.__getitem__)
        queue = [(len(self.blocks[n]), n, (n,)) for n in self.successors[start]]
        heapq.heapify(queue)
        seen = set()
        while queue:
            cost, block, way = heapq.heappop(queue)
            if block == start:
                return [line for n in way for line in self.blocks[n]]
            if block not in seen:
                seen.add(block)
                for n in self.successors[block]:
                    heapq.heappush(queue, (cost + len(self.blocks[n]), n, (*way, n)))
        raise AssertionError(f"no loop through {mark}")


def opcode(line: str) -> str:
    """The instruction without predicate and operands."""
    return re.sub(r"^@!?U?P\w+\s+", "", line).split()[0]


def tool() -> Path | None:
    """Triton's own disassembler, None where its wheel has none."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return path if path.exists() else None


def binary(kernel) -> Binary:
    """The machine code of a compiled program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage, code = (
            subprocess.run([tool(), flag, file.name], capture_output=True, text=True, check=True)
            for flag in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout)
    assert found, usage.stdout
    lines = [
        (int(place, 16), text.strip())
        for place, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(\S.*?);", code.stdout)
    ]
    return Binary(int(found[1]), int(found[2]), *_blocks(lines))


def _blocks(lines):
    """Basic blocks, and which may follow each."""
    target = {}
    for place, text in lines:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump:
            target[place] = int(jump[1], 16)
    begins = {lines[0][0], *target.values()}
    ends = re.compile(r"\b(BRA|EXIT|RET|BRX|CALL)\b")
    begins |= {after for (_, text), (after, _) in itertools.pairwise(lines) if ends.search(text)}
    blocks, starts = [], []
    for place, text in lines:
        if place in begins:
            blocks.append([])
            starts.append(place)
        blocks[-1].append((place, text))
    number = {place: n for n, place in enumerate(starts)}
    successors = []
    for n, block in enumerate(blocks):
        place, text = block[-1]
        follow = [number[target[place]]] if place in target else []
        always = re.match(r"(BRA|EXIT|RET|BRX)\b", text)
        if not always and n + 1 < len(blocks):
            follow.append(n + 1)
        successors.append(tuple(follow))
    code = (tuple(t for _, t in block if opcode(t) != "NOP") for block in blocks)
    return tuple(code), tuple(successors)
