"""A sweep of small students on the bundled sample, trained as one pack, against a job of its own for each of them."""

import threading
from dataclasses import replace

import torch

from bench.plain_trainer import PlainTagger, PlainTrainer
from bench.ratio import compare
from kdfast.distill import reference_engine
from kdfast.distill.batches import epoch_batches
from kdfast.distill.pack import Member, Pack, View
from kdfast.distill.targets import teacher_targets
from kdfast.distill.trainer import train_pack
from kdfast.models import JetTransformer
from kdfast.models.config import model_config
from kdfast.store.settings import StudySettings
from kdfast.study.prepare import load_sets, prepare

MEMBERS = 8  # of the 132, for one epoch each: the cost of a member does not depend on its T and α
SETTINGS = {
    "hlt": "nominal",
    "model": "small",
    "data": {"fractions": (0.7, 0.15, 0.15)},
    "recipe": {"learning_rate": 2e-3},
}


def padded(view: View, jets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    counts = view.offsets.diff()[jets]
    mask = torch.arange(int(counts.max())) < counts[:, None]
    x = torch.zeros(*mask.shape, view.features.shape[1])
    x[mask] = view.features[(view.offsets[jets][:, None] + torch.arange(mask.shape[1]))[mask]]
    mask[:, 0] = True  # a jet that the trigger sees nothing of keeps a slot of zeros: softmax over none would be NaN
    return x, mask


def small_pack() -> tuple[Pack, JetTransformer, View, View]:
    """MEMBERS small students, the teacher behind their targets, and its and their training jets."""
    settings = StudySettings.resolve(overrides=SETTINGS)
    prepared = prepare(load_sets({}, settings.data)[0], settings)
    student, teacher = model_config(settings.model), JetTransformer(settings.teacher_model)
    offline, hlt = prepared.offline["train"], prepared.hlt["train"]
    recipe = settings.recipe.student().model_copy(update={"epochs": 1})
    members = tuple(Member(run.name, run) for run in settings.runs()[:: 132 // MEMBERS][:MEMBERS])
    targets = teacher_targets(teacher, offline)
    pack = Pack(student, members, 0, recipe, hlt, prepared.hlt["validation"], prepared.hlt["test"], targets)
    return pack, teacher, offline, hlt


def test_small_sweep(benchmark):
    pack, teacher, offline, hlt = small_pack()
    student, recipe, members, targets = pack.model, pack.recipe, pack.members, pack.targets
    plain_teacher = PlainTagger(teacher.config)
    plain_teacher.copy_weights(teacher)
    batches = epoch_batches(0, 0, len(hlt), recipe.batch_size)

    def ours() -> float:
        losses = {result.name: result.curves["loss"][0] for result in train_pack(pack)}  # all of them
        assert len(losses) == MEMBERS
        return losses[members[0].name]

    def plain() -> float:
        """One student, one epoch, as one of 132 jobs: padded jets, a live teacher."""
        plain_student = PlainTagger(student)
        plain_student.copy_weights(JetTransformer(student, seed=0))
        rate = recipe.learning_rate / max(recipe.warmup_epochs, 1)
        trainer = PlainTrainer(plain_student, plain_teacher, rate, recipe.weight_decay)
        temperature, alpha = members[0].config.at(0, 1)
        losses = [
            trainer.step(padded(hlt, jets), padded(offline, jets), hlt.labels[jets], temperature, alpha)
            for jets in batches
        ]
        return sum(losses) / len(losses)

    def check(our_loss: float, plain_loss: float) -> None:
        # The same weights and batches; dropout differs, and BCE of soft targets is the KL plus the teacher's entropy.
        temperature, alpha = members[0].config.at(0, 1)
        soft = torch.sigmoid(targets.logits[batches.flatten()] / temperature)
        entropy = torch.nn.functional.binary_cross_entropy(soft, soft).item()
        assert abs(our_loss + alpha * temperature**2 * entropy - plain_loss) < 0.05 * plain_loss

    compare(
        benchmark,
        ours,
        plain,
        check=check,
        plain_work=1 / MEMBERS,
        seconds=30.0,
        baseline="a job for each member: eager, padded, live teacher",
    )


def test_small_sweep_engine(benchmark):
    """The compiled engine against the one in PyTorch with the compiled ops, which it replaced."""
    pack, *_ = small_pack()
    few = replace(pack, members=pack.members[:2])

    def aucs(results) -> torch.Tensor:
        found = {result.name: result.curves["auc_val"][0] for result in results}
        return torch.tensor([found[member.name] for member in few.members])

    compare(
        benchmark,
        lambda: aucs(train_pack(pack)),
        lambda: aucs(reference_engine.train(few, torch.get_num_threads(), None, threading.Event())),
        check=lambda ours, plain: torch.testing.assert_close(ours, plain, rtol=0, atol=2e-3),
        plain_work=len(few.members) / MEMBERS,
        seconds=20.0,
        baseline="the engine in PyTorch, compiled ops",
    )
