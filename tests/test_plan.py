"""`mrcnn plan`: the program it compiles is the one that trains, and what it makes of the compiler's words."""

import json
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny
from jax import lax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from experiments import base
from mrcnn_jax import cli, distributed
from mrcnn_jax.checkpoints.initial import initial_variables
from mrcnn_jax.commands import plan
from mrcnn_jax.data import pipeline, sources
from mrcnn_jax.errors import UserError
from mrcnn_jax.models import zoo
from mrcnn_jax.models.build import build
from mrcnn_jax.optim import optimizer
from mrcnn_jax.planning import figures
from mrcnn_jax.planning.arithmetic import multiplications
from mrcnn_jax.planning.chips import CHIPS, parse_topology
from mrcnn_jax.planning.compiler_text import (
    Collectives,
    OutOfMemory,
    collectives,
    largest_arrays,
    out_of_memory,
    traffic,
)
from mrcnn_jax.planning.devices import mesh_of
from mrcnn_jax.planning.program import Compiled, batch_shapes, compile_for, largest_bucket, resolved, train_program
from mrcnn_jax.planning.search import largest_batch
from mrcnn_jax.train_step import init_state

GIB = 2**30


def cuda_plugin():
    return any(one.name.startswith("jax-cuda") for one in metadata.distributions())


# Lines of the step compiled for v5e:2x2, shortened; of what libtpu 0.0.50 says when memory is short; and of what it
# says once memory is laid out.
COMPILED = """\
HloModule jit_step, is_scheduled=true, num_partitions=4

%fused_computation.9 (param_0.1: f32[4,64]) -> f32[999,999,9] {
  %param_0.1 = f32[4,64]{1,0:T(4,128)} parameter(0)
  ROOT %broadcast.1 = f32[999,999,9]{2,1,0:T(8,128)} broadcast(%param_0.1), dimensions={}
}

ENTRY %main.428_spmd (param.520: s32[], param.521: f32[4,64]) -> (s32[], f32[4,64]) {
  %param.521 = f32[4,64]{1,0:T(4,128)} parameter(1)
  %dot_general.7 = f32[4,64,14,336,256]{4,3,2,1,0:T(8,128)} fusion(%param.521), kind=kOutput, calls=%fused_computation.9, metadata={op_name="jit(step)/shard_map/jvp(RCNN.losses)/RCNN.regions/vmap()/cond/branch_0_fun/while/body/eval_jaxpr/nal,lsc->nasc/dot_general" stack_frame_id=1}
  %all-reduce.130 = (f32[]{:T(128)}, f32[]{:T(128)}, f32[]{:T(128)}) all-reduce(%a.1, %a.2, %a.3), channel_id=1, replica_groups=mesh['data'=4] {'data'}, use_global_device_ids=true, to_apply=%region_7
  %get-tuple-element.10396 = f32[]{:T(128)} get-tuple-element(%all-reduce.130), index=2
  %all-reduce.129 = (f32[]{:T(128)}, /*index=5*/f32[1,1,256,128]{3,2,1,0:T(8,128)}, bf16[3,3,128,128]{3,2,1,0:T(8,128)}) all-reduce(%b.1, %b.2, %b.3), channel_id=2, to_apply=%region_8
  %all-gather-start.2 = (f32[2,3]{1,0}, f32[8,3]{1,0}) all-gather-start(%c.1), channel_id=3, dimensions={0}
  %all-gather-done.2 = f32[8,3]{1,0} all-gather-done(%all-gather-start.2)
  ROOT %tuple.1 = (s32[], f32[4,64]{1,0:T(4,128)}) tuple(%d.1, %d.2)
}
"""  # noqa: E501
LOOP = """\
%fused_computation.2 (param_0: f32[16,32]) -> f32[16,64] {
  ROOT %multiply.1 = f32[16,64]{1,0} multiply(%param_0, %param_0)
}

%region_1 (param.1: (s32[], f32[8,16,64])) -> pred[] {
  %param.1 = (s32[]{:T(128)}, f32[8,16,64]{2,1,0:T(8,128)}) parameter(0)
  %constant.3 = s32[]{:T(128)} constant(8), metadata={op_name="jit(step)/while"}
  %get-tuple-element.4 = s32[]{:T(128)} get-tuple-element(%param.1), index=0
  ROOT %lt.5 = pred[]{:T(512)} compare(%get-tuple-element.4, %constant.3), direction=LT
}

%region_2 (param.2: (s32[], f32[8,16,64])) -> (s32[], f32[8,16,64]) {
  %param.2 = (s32[]{:T(128)}, f32[8,16,64]{2,1,0:T(8,128)}) parameter(0)
  %get-tuple-element.6 = f32[8,16,64]{2,1,0:T(8,128)} get-tuple-element(%param.2), index=1
  %fusion.7 = f32[16,64]{1,0:T(8,128)} fusion(%get-tuple-element.6), kind=kLoop, calls=%fused_computation.2
  %copy.8 = f32[16,64]{1,0:T(8,128)S(1)} copy(%fusion.7)
  %copy_dynamic-update-slice_fusion.9 = f32[8,16,64]{2,1,0:T(8,128)} fusion(%get-tuple-element.6, %copy.8), kind=kLoop, calls=%fused_computation.3
  ROOT %tuple.10 = (s32[]{:T(128)}, f32[8,16,64]{2,1,0:T(8,128)}) tuple(%get-tuple-element.6)
}

ENTRY %main.1 (param.3: f32[8,16,64]) -> f32[8,16,64] {
  %param.3 = f32[8,16,64]{2,1,0:T(8,128)} parameter(0)
  %while.11 = (s32[]{:T(128)}, f32[8,16,64]{2,1,0:T(8,128)}) while(%tuple.1), condition=%region_1, body=%region_2, metadata={op_name="jit(step)/while"}
  ROOT %get-tuple-element.12 = f32[8,16,64]{2,1,0:T(8,128)} get-tuple-element(%while.11), index=1
}
"""  # noqa: E501
TOTALS = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (19.07G) exceeds available HBM (15.75G). HLO module: jit_step.\n"
    "See https://openxla.org/xla/errors/error_1000 for more details."
)
ALLOCATIONS = """\
RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 30.21G of 15.48G hbm. \
Exceeded hbm capacity by 14.73G.

Program hbm requirement 14.31G:
    global           481.0K
    HLO temp         14.31G (100.0% utilization: Unpadded (14.25G) Padded (14.25G), 0.4% fragmentation (62.60M))

  Largest program allocations in hbm:

  1. Size: 1.46G
     Operator: op_name="jit(step)/embed/convert_element_type" source_file="model.py" source_line=3
     Shape: bf16[256000,3072]{1,0:T(8,128)(2,1)}
     Unpadded size: 1.46G
     Allocation type: HLO temp
     ==========================

  2. Size: 144.00M
     Shape: bf16[3072,24576]{1,0:T(8,128)(2,1)}
     Unpadded size: 144.00M
"""


def test_collectives_are_counted_with_their_bytes():
    reduced = 3 * 4 + 4 + 4 * 256 * 128 + 2 * 9 * 128 * 128
    assert collectives(COMPILED) == (Collectives("all-gather", 1, 8 * 3 * 4), Collectives("all-reduce", 2, reduced))
    assert collectives("ENTRY %main () -> f32[] {\n}\n") == ()


def test_collectives_for_gpus_start_with_operands_and_results():
    text = """\
  %all-reduce-start.2 = ((f32[2048]{0}, f32[8]{0}), (f32[2048]{0}, f32[8]{0})) all-reduce-start(%a.1, %a.2)
  %all-reduce-done.2 = (f32[2048]{0}, f32[8]{0}) all-reduce-done(%all-reduce-start.2)
  %all-reduce-start.3 = f32[16]{0} all-reduce-start(%a.3), channel_id=2
"""
    assert collectives(text) == (Collectives("all-reduce", 2, 4 * (2048 + 8 + 16)),)


def test_rings_send_what_theory_says():
    assert Collectives("all-reduce", 1, 800).sent(4) == 2 * 800 * 3 / 4
    assert Collectives("all-gather", 1, 800).sent(4) == 800 * 3 / 4
    # The result is a fourth of what is reduced.
    assert Collectives("reduce-scatter", 1, 200).sent(4) == 800 * 3 / 4
    assert Collectives("all-reduce", 1, 800).sent(1) == 0


def test_out_of_memory_in_both_forms():
    assert out_of_memory(TOTALS) == OutOfMemory(round(19.07 * GIB), round(15.75 * GIB))
    assert out_of_memory(ALLOCATIONS) == OutOfMemory(
        round(30.21 * GIB),
        round(15.48 * GIB),
        ("bf16[256000,3072] (1.46G, jit(step)/embed/convert_element_type)", "bf16[3072,24576] (144.00M)"),
    )
    assert out_of_memory("INTERNAL: Mosaic failed to compile") is None


def test_largest_arrays_are_those_in_memory():
    first, *others = largest_arrays(COMPILED, 3, compiled=True)
    assert first == "f32[4,64,14,336,256] (1.15 GiB, jvp(RCNN.losses)/RCNN.regions/nal,lsc->nasc/dot_general)"
    assert others[0].startswith("bf16[3,3,128,128]")


def test_traffic_of_loops_is_that_of_their_turns():
    """Eight turns that each make 4 KiB in HBM, beside what is in VMEM, changed in place or made inside a fusion."""
    assert traffic(LOOP, loops_once=True) == 2 * 4096
    assert traffic(LOOP) == 8 * 2 * 4096
    assert traffic(LOOP.replace("copy_dynamic-update-slice", "loop_dynamic_update_slice")) == 8 * 2 * 4096
    unknown = LOOP.replace("constant(8)", "parameter(0)")
    assert traffic(unknown) == 2 * 4096
    told = unknown.replace("body=%region_2,", 'body=%region_2, backend_config={"known_trip_count":{"n":"8"}},')
    assert traffic(told) == 8 * 2 * 4096


def test_traffic_is_of_what_is_made():
    """What runs beside other operations counts where it ends."""
    made = 4 * 4 * 64 * 14 * 336 * 256 + 3 * 4 + 4 + 4 * 256 * 128 + 2 * 9 * 128 * 128 + 4 * 8 * 3
    assert traffic(COMPILED) == traffic(COMPILED, loops_once=True) == 2 * made


def test_topologies():
    topology = parse_topology("v5e:16x16")
    assert (topology.num_chips, topology.num_hosts, topology.chip) == (256, 64, CHIPS["v5e"])
    assert parse_topology("v4:2x2x1").num_chips == 4
    for name in ("v5e", "v7:2x2", "v5e:2x2x2", "v5p:2x2", "v5e:0x2", "v5e:2x"):
        with pytest.raises(UserError, match="such as v5e:2x2"):
            parse_topology(name)


def test_topologies_of_gpus():
    topology = parse_topology("h100:16")
    assert (topology.num_chips, topology.num_hosts, topology.platform) == (16, 2, "cuda")
    assert topology.chip.memory == int(0.75 * 84942979072)
    assert [parse_topology(f"a100:{number}").num_hosts for number in (1, 7, 8)] == [1, 1, 1]
    for name in ("h100:0", "h100:9", "h100:2x4", "a100:12"):
        with pytest.raises(UserError, match="1 to 8 GPUs of one host, or several times 8"):
            parse_topology(name)
    for name in ("h100", "v100:8", "gpu"):
        with pytest.raises(UserError, match="h100:1 or a100:8"):
            parse_topology(name)


def compiled(temporaries, **others):
    nothing = {"arguments": 0, "outputs": 0, "code": 0, "flops": 1.0, "traffic": 1.0, "text": ""}
    return Compiled(temporaries=temporaries, peak=temporaries, **(nothing | others))


def test_roofline_is_the_slowest_of_three():
    topology = parse_topology("v5e:2x2")
    program = compiled(0, flops=197e12, traffic=819e9 * 2, text=COMPILED)
    bound = figures.roofline(program, topology, batch_per_chip=8)
    assert bound["seconds"]["compute"] == pytest.approx(1)
    assert bound["seconds"]["hbm"] == pytest.approx(2)
    assert bound["seconds"]["network"] == pytest.approx(sum(one.sent(4) for one in collectives(COMPILED)) / 200e9)
    assert (bound["bound_by"], bound["images_per_second"]) == ("hbm", pytest.approx(16))
    assert figures.roofline(compiled(0, flops=1e15, text=""), topology, 1)["bound_by"] == "compute"


@pytest.mark.parametrize(("known", "step"), [(1, 1), (4, 1), (16, 1), (24, 1), (25, 1), (60, 1), (2, 2)])
def test_search_finds_the_largest_batch(known, step):
    tried = []

    def attempt(batch):
        tried.append(batch)
        needed = round((0.7 + 0.6 * batch) * GIB)
        fits = needed <= 15.75 * GIB
        return compiled(needed) if fits else OutOfMemory(needed, round(15.75 * GIB))

    best, outcomes = largest_batch(attempt, {known: attempt(known)}, step, 1024, 16 * GIB)
    assert best == (25 if step == 1 else 24)
    assert isinstance(outcomes[best], Compiled)
    assert isinstance(outcomes[best + step], OutOfMemory)
    assert len(tried) == len(set(tried)) <= 6


def test_search_that_finds_nothing():
    def attempt(batch):
        return OutOfMemory(20 * GIB + batch, 16 * GIB)

    assert largest_batch(attempt, {3: attempt(3)}, 1, 1024, 16 * GIB)[0] == 0


def experiment():
    config = base.experiment("tiny", tiny.model_config())
    config.model.num_classes = 8
    config.data.update({
        "kind": "shapes", "num_train": 8, "num_val": 4, "size": (64, 64), "short_sides": (64,), "max_size": 64,
        "buckets": ((64, 64), (32, 64)), "max_objects": 6, "num_workers": 0, "keep_empty": True,
    })  # fmt: skip
    config.train.update({"batch_size": 8, "ema": 0.9})
    return config.lock()


def shapes(tree):
    leaves, structure = jax.tree.flatten(tree)
    return [(x.shape, jax.numpy.dtype(x.dtype)) for x in leaves], structure


@pytest.mark.parametrize("kind", ["mask", "proposals", "keypoints"])
def test_batch_is_what_training_makes(kind):
    config = experiment().copy_and_resolve_references()
    if kind == "proposals":
        config.model.rpn = None
        config.model.preprocess.interpolation = "torchvision"
        config.data.num_proposals = (20, 10)
    if kind == "keypoints":
        config.data.update({"keypoints": True, "mask_size": 0})
        config.model.keypoint = zoo.keypoint_rcnn().keypoint
        arrays, _ = batch_shapes(config, (64, 64), 8)
        assert (8, 6, 17, 3) in [x.shape for x in arrays]
        return
    dataset, _ = sources.load(config, "train")
    loader = pipeline.train_loader(dataset, config, 0, 8)
    batch = distributed.shard(next(loader), distributed.make_mesh(4))
    loader.close()
    arrays, structure = batch_shapes(config, largest_bucket(config), 8)
    assert (shapes(arrays)[0], structure) == shapes(batch)


def test_state_is_what_training_starts_from():
    config = resolved(experiment())
    mesh = distributed.make_mesh(4)
    model = build(config.model, distributed.AXIS)
    variables, _ = initial_variables(model, config)
    tx, _ = optimizer(config, variables["params"])
    state = distributed.replicate(init_state(variables, tx, ema=True), mesh)
    _, planned, batch = train_program(config, mesh, (64, 64), 8)
    assert shapes(planned) == shapes(state)
    assert [x.sharding for x in jax.tree.leaves(planned)] == [x.sharding for x in jax.tree.leaves(state)]
    assert figures.disk(planned, 2)["checkpoint_bytes"] == sum(x.nbytes for x in jax.tree.leaves(state))
    of_an_image = sum(x.dtype.itemsize * np.prod(x.shape) for x in jax.tree.leaves(batch)) / 8
    told = figures.host(400.0, batch, parse_topology("v5e:2x4"))
    assert (told["hosts"], told["images_per_second"], told["bytes_per_second"]) == (2, 200, 200 * of_an_image)


def test_lowers_for_tpu_with_the_choices_made_for_it():
    """RoIs by products, NMS as a fixed point over all pairs, weight gradients as convolutions."""
    config = experiment().copy_and_resolve_references()
    config.model.dtype = "bfloat16"
    step, state, batch = train_program(resolved(config), distributed.make_mesh(4), (64, 64), 8)
    traced = step.trace(state, batch)
    tpu, cpu = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("tpu", "cpu"))
    # One image's box RoIs, 16 of them in 7 bins, by columns of the finest map: lines first, then columns.
    product, pairs = "tensor<2x16x7x16x16xf32>", "2x5x32x32xi1"
    assert product in tpu
    assert product not in cpu
    assert pairs in tpu
    assert pairs not in cpu
    assert "bf16" in tpu
    # The samplers and losses look rows up too; RoIs of 16 channels are read from a table of all levels on a CPU alone.
    table = f"tensor<2x{16 * 16 + 8 * 8 + 4 * 4 + 2 * 2}x16x"
    assert table in cpu
    assert table not in tpu
    lowered = traced.lower(lowering_platforms=("tpu",)).as_text(dialect="hlo", debug_info=True)
    first, *_ = largest_arrays(lowered, 3, compiled=False)
    assert first.startswith("f32[2,16,7,16,16] ")
    assert first.endswith("nal,lsc->nasc/dot_general)")


def run(capsys, *arguments):
    status = cli.main(["plan", "--config=experiments/detectron2/mask_rcnn_r50_fpn_1x.py", *arguments])
    return status, capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--topology=v9:2x2"], "--topology=v9:2x2 is not known"),
        (["--topology=v5e:16x16"], "batch_size=16 does not divide over the 256 chips"),
        (["--topology=v5e:2x2", "--batch-per-chip=3", "--config.train.accumulate=2"], "--batch-per-chip=3 does not"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, said):
    status, output = run(capsys, *arguments)
    assert status == 2
    assert said in output.err
    assert output.err.count("\n") == 1


def test_missing_libtpu_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr("mrcnn_jax.planning.devices.find_spec", lambda name: None)
    status, output = run(capsys, "--topology=v5e:2x2")
    assert status == 2
    assert "pip install" in output.err


def test_missing_plugin_for_gpus_is_one_line(capsys, monkeypatch):
    def get_topology_desc(**options):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", get_topology_desc)
    status, output = run(capsys, "--topology=h100:8")
    assert status == 2
    assert "pip install 'mrcnn_jax[cuda]'" in output.err
    assert output.err.count("\n") == 1


def test_gpus_are_described_to_their_compiler(monkeypatch):
    asked = {}

    def get_topology_desc(**options):
        asked.update(options)
        return topologies.TopologyDescription(jax.devices()[:4])

    monkeypatch.setattr(topologies, "get_topology_desc", get_topology_desc)
    assert mesh_of(parse_topology("h200:4")).shape == {"data": 4}
    assert (asked["platform"], asked["topology"]) == ("cuda", "1x1x4")
    told = asked["target_config"]
    assert told.count("{") == told.count("}") == 2
    for line in ("major: 9 minor: 0", "core_count: 132", "device_memory_size: 151397597184", "4800000000000"):
        assert line in told
    mesh_of(parse_topology("a100:16"))
    assert asked["topology"] == "1x2x8"


class WithoutCosts(jax.stages.Compiled):
    """What the compiler for GPUs gives, laid out in so many bytes."""

    def __init__(self, total):
        self.memory = SimpleNamespace(
            argument_size_in_bytes=5 * GIB, output_size_in_bytes=5 * GIB, alias_size_in_bytes=4 * GIB,
            generated_code_size_in_bytes=0, peak_memory_in_bytes=0, temp_size_in_bytes=9 * GIB,
            total_allocation_bytes=total,
        )  # fmt: skip

    def memory_analysis(self):
        return self.memory

    def cost_analysis(self):
        return None

    def as_text(self):
        return COMPILED


def test_gpus_fit_by_their_layout(monkeypatch):
    """Nothing is refused for a GPU, and no arithmetic told."""
    topology = parse_topology("h100:1")
    traced = jax.jit(lambda x, y: x @ y).trace(np.ones((2, 3), np.float32), np.ones((3, 4), np.float32))

    def compiled_into(total):
        lowered = SimpleNamespace(compile=lambda: WithoutCosts(total))
        monkeypatch.setattr(jax.stages.Traced, "lower", lambda self, lowering_platforms: lowered)
        return compile_for(traced, topology)

    fits = compiled_into(50 * GIB)
    assert isinstance(fits, Compiled)
    assert (fits.arguments, fits.temporaries, fits.outputs, fits.total) == (5 * GIB, 44 * GIB, GIB, 50 * GIB)
    assert (fits.flops, fits.traffic) == (2 * 2 * 3 * 4, 5 * GIB + traffic(COMPILED))
    fails = compiled_into(60 * GIB)
    assert fails == OutOfMemory(60 * GIB, topology.chip.memory, largest_arrays(COMPILED, compiled=True))


def test_arithmetic_is_that_of_the_platform():
    def squared(x, times):
        for _ in range(times):
            x = x @ x
        return x

    def branches(x):
        by = {platform: partial(squared, times=times) for platform, times in (("tpu", 5), ("cpu", 2))}
        return lax.platform_dependent(x, **by, default=partial(squared, times=3))

    jaxpr = jax.make_jaxpr(jax.jit(branches))(np.ones((3, 3), np.float32)).jaxpr
    counts = [multiplications(jaxpr, platform=platform) / 27 for platform in ("tpu", "cpu", "cuda", None)]
    assert counts == [5, 2, 3, 5]


class Program:
    """Stands for a step of so many images a chip."""

    def __init__(self, num_images):
        self.num_images = num_images

    def trace(self, state, batch):
        return self


def compile_program(program, topology):
    """3 GiB an image, of 15.75."""
    needed = program.num_images * 3 * GIB
    largest = largest_arrays(COMPILED, compiled=True)
    return (
        compiled(needed, text=COMPILED) if needed <= 15.75 * GIB else OutOfMemory(needed, round(15.75 * GIB), largest)
    )


@pytest.mark.parametrize("fits", [True, False])
def test_report(capsys, monkeypatch, tmp_path, fits):
    """The whole command, with a compiler that knows the answer."""
    state = {"weight": jax.ShapeDtypeStruct((10, 10), "float32")}

    def train_program(config, mesh, bucket, batch_size):
        return Program(batch_size // 4), state, batch_shapes(config, bucket, batch_size)[0]

    monkeypatch.setattr(plan, "mesh_of", lambda topology: distributed.make_mesh(4))
    monkeypatch.setattr(plan, "train_program", train_program)
    monkeypatch.setattr(plan, "compile_for", compile_program)
    monkeypatch.setattr(plan.metadata, "version", lambda name: "1.2.3")
    monkeypatch.setattr(plan.jax.config, "update", lambda name, value: None)
    file = tmp_path / "plan.json"
    status, output = run(capsys, "--topology=v5e:2x2", f"--batch-per-chip={4 if fits else 6}", f"--json={file}")
    report = json.loads(file.read_text())
    assert status == (0 if fits else 1)
    assert report["fits"] == fits
    assert report["largest_batch_per_chip"] == 5
    assert "largest batch: 5 images a chip" in output.out
    if fits:
        assert report["memory_bytes"]["temporaries"] == 12 * GIB
        assert report["disk"] == {"checkpoint_bytes": 400, "checkpoints_bytes": 1600}
        assert "bound, as compiled: " in output.out
    else:
        assert (
            "does not fit: 18.00 GiB of HBM are needed and 15.75 GiB there; the largest array is f32[4,64" in output.out
        )
        assert "RCNN.regions" in report["largest_arrays"][0]


@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs libtpu, of 640 MB: pip install libtpu")
def test_compiles_for_a_tpu(capsys, tmp_path):
    file = tmp_path / "plan.json"
    status = cli.main([
        "plan", "--config=experiments/shapes.py:smoke", "--topology=v5e:1x1", "--no-search", f"--json={file}",
        "--config.model.dtype=bfloat16",
    ])  # fmt: skip
    jax.config.update("jax_optimization_level", "UNKNOWN")
    jax.config.update("jax_enable_compilation_cache", True)
    report = json.loads(file.read_text())
    assert status == 0
    assert "fits" in capsys.readouterr().out
    assert report["flops"] > 1e9
    assert report["collectives"] == []


@pytest.fixture
def no_program_is_kept():
    """What is compiled for chips that are not here cannot be read back."""
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.mark.skipif(not cuda_plugin(), reason="needs JAX's CUDA plugin: pip install 'jax[cuda13]'")
def test_compiles_for_gpus(no_program_is_kept):
    """Of eight, which are not here: their sums meet in all-reduces, and what is too large is told."""
    topology = parse_topology("h100:8")
    mesh = mesh_of(topology)
    sharded, replicated = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))

    def compile_step(batch):
        images = jax.ShapeDtypeStruct((batch, 64, 64, 128), "bfloat16", sharding=sharded)
        kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), "bfloat16", sharding=replicated)

        def loss(kernel, images):
            return (lax.conv(images.transpose(0, 3, 1, 2), kernel.transpose(3, 2, 0, 1), (1, 1), "SAME") ** 2).mean()

        return compile_for(jax.jit(jax.grad(loss), out_shardings=replicated).trace(kernel, images), topology)

    program = compile_step(64)
    assert isinstance(program, Compiled)
    # Forward and the kernel's gradient, of all images: it is the trace that is counted.
    assert program.flops > 2 * 9 * 128 * 128 * 64 * 64 * 64
    assert 8 * 64 * 64 * 128 * 2 < program.total < GIB
    assert [one.kind for one in collectives(program.text)] == ["all-reduce"]
    assert isinstance(compile_step(2**18), OutOfMemory)
