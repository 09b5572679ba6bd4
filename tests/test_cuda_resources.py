"""ci/cuda_resources.py: instructions and loops in what nvdisasm prints, and what differs from a kernel's table."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "ci"))
cuda_instructions = pytest.importorskip("cuda_instructions", reason="needs the source tree")
cuda_resources = pytest.importorskip("cuda_resources")

# Two innermost loops with products, the second with two branches; a loop around both; one without products; rare
# code behind the exit that leads back; padding.
SASS = """
	.section	.text._Z1kv,"ax",@progbits
	.align	128
.text._Z1kv:
_Z1kv:
        /*0000*/                   S2R R0, SR_TID.X ;
.L_x_0:
        /*0010*/                   IADD3 R0, R0, 0x1, RZ ;
.L_x_1:
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0030*/              @!P0 BRA `(.L_x_5) ;
        /*0040*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0060*/              @!P1 BRA `(.L_x_2) ;
        /*0070*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*0080*/             @!UP2 BRA `(.L_x_2) ;
        /*0090*/               @P3 BRA `(.L_x_0) ;
.L_x_3:
        /*00a0*/                   FADD R4, R4, R4 ;
        /*00b0*/               @P1 BRA `(.L_x_3) ;
.L_x_4:
        /*00c0*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;
        /*00d0*/                   EXIT ;
.L_x_5:
        /*00e0*/                   BRA `(.L_x_4) ;
.L_x_6:
        /*00f0*/                   BRA `(.L_x_6);
        /*0100*/                   NOP;
	.section	.text._Z5emptyv,"ax",@progbits
        /*0000*/                   EXIT ;
"""


def test_instructions_are_counted_and_loops_with_products() -> None:
    counts = cuda_instructions.read_instructions(SASS.splitlines())
    assert counts == {"_Z1kv": (16, ((3, 1), (4, 2))), "_Z5emptyv": (1, ())}
    assert cuda_resources.instructions_text(counts["_Z1kv"]) == "16 instructions, loops 3 (1 HMMA), 4 (2 HMMA)"
    assert cuda_resources.instructions_text(counts["_Z5emptyv"]) == "1 instructions"


@pytest.mark.parametrize(
    ("now", "same"),
    [
        ("64 registers, 0 bytes shared, 1000 instructions, loops 221 (16 HMMA)", True),
        ("64 registers, 0 bytes shared, 1030 instructions, loops 215 (16 HMMA)", True),
        ("65 registers, 0 bytes shared, 1000 instructions, loops 221 (16 HMMA)", False),
        ("64 registers, 16 bytes shared, 1000 instructions, loops 221 (16 HMMA)", False),
        ("64 registers, 0 bytes shared, 1031 instructions, loops 221 (16 HMMA)", False),
        ("64 registers, 0 bytes shared, 1000 instructions, loops 228 (16 HMMA)", False),
        ("64 registers, 0 bytes shared, 1000 instructions, loops 221 (15 HMMA)", False),
        ("64 registers, 0 bytes shared, 1000 instructions", False),
    ],
)
def test_registers_are_held_exactly_and_instructions_nearly(
    now: str, same: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_resources, "TABLES", tmp_path)
    line = "64 registers, 0 bytes shared, 1000 instructions, loops 221 (16 HMMA)"
    (tmp_path / "op.txt").write_text(f"# nvcc 13.0.88\nkernel<8>  sm_90  {line}\n")
    differences = cuda_resources.compare("op", {"kernel<8>  sm_90": now}, "13.0.88")
    assert differences == ([] if same else [f"op: kernel<8>  sm_90: {now}; the table has: {line}"])
    assert cuda_resources.compare("op", {"kernel<8>  sm_90": now}, "12.9.1") == []


def test_a_table_without_numbers_of_instructions_holds_the_rest() -> None:
    known = "64 registers, 0 bytes shared"
    assert cuda_resources.same(known, f"{known}, 1000 instructions, loops 221 (16 HMMA)")
    assert not cuda_resources.same(known, "65 registers, 0 bytes shared, 1000 instructions")
    assert not cuda_resources.same(f"{known}, 1000 instructions", known)


LOG = """ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
ptxas info    : Function properties for _Z1kv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 512 bytes smem
"""


def test_a_change_is_an_error_that_says_how_to_accept_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuda_resources, "TABLES", tmp_path)
    (tmp_path / "sm_90.op.log").write_text(LOG)
    (tmp_path / "sm_90.op.sass").write_text(SASS)
    assert cuda_resources.main(str(tmp_path), "13.0.88", "--update") == 0
    assert "24 registers, 512 bytes shared, 16 instructions, loops 3 (1 HMMA)" in (tmp_path / "op.txt").read_text()
    (tmp_path / "sm_90.op.sass").write_text(SASS.replace("FADD", "FADD R5, R4, R4 ;\n        /*00a8*/       FMUL"))
    assert cuda_resources.main(str(tmp_path), "13.0.88") == 1
    said = capsys.readouterr().err
    assert "k  sm_90: 24 registers, 512 bytes shared, 17 instructions" in said
    assert "bash ci/cuda-compile --update" in said
