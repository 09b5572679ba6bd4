"""One training step of the study's model: batch of 512 jets, up to 40 constituents, 79 % of the slots filled."""

import torch
import torch.nn.functional as F

from bench.plain_trainer import PlainTagger, PlainTrainer, attention_numbers
from bench.ratio import compare
from kdfast.distill.optimizer import FlatAdamW
from kdfast.distill.reference_engine import member_loss
from kdfast.distill.schedules import RunConfig
from kdfast.distill.targets import teacher_targets
from kdfast.distill.trainer import Member, Pack, Recipe, View
from kdfast.models import PRESETS, JetTransformer

JETS, SLOTS = 512, 40
TEMPERATURE, ALPHA = 5.0, 0.7


def jets(seed: int) -> View:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(23, SLOTS + 1, (JETS,), generator=generator)  # mean 31.5 of 40
    offsets = torch.zeros(JETS + 1, dtype=torch.int64)
    offsets[1:] = counts.cumsum(0)
    labels = (torch.arange(JETS) % 2).float()
    return View(torch.randn(int(offsets[-1]), 7, generator=generator), offsets, labels, torch.ones(JETS))


def padded(view: View) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.arange(SLOTS) < view.offsets.diff()[:, None]
    x = torch.zeros(JETS, SLOTS, view.features.shape[1])
    x[mask] = view.features
    return x, mask


def test_training_step_study(benchmark):
    config, hlt, offline = PRESETS["study"], jets(0), jets(1)
    student, teacher = JetTransformer(config, seed=1), JetTransformer(config, seed=2)
    recipe = Recipe(batch_size=JETS)
    member = Member("student", RunConfig(TEMPERATURE, ALPHA))
    pack = Pack(config, (member,), 0, recipe, hlt, hlt, hlt, teacher_targets(teacher, offline))
    order = torch.arange(JETS)

    plain_student, plain_teacher = PlainTagger(config), PlainTagger(config)
    plain_student.copy_weights(student)
    plain_teacher.copy_weights(teacher)
    trainer = PlainTrainer(plain_student, plain_teacher, recipe.learning_rate, recipe.weight_decay)
    batch = (padded(hlt), padded(offline), hlt.labels, TEMPERATURE, ALPHA)

    # The same loss and gradient, in evaluation mode: without dropout, and BatchNorm sees no padding.
    student.eval()
    plain_student.eval()
    our_loss, _ = member_loss(pack, member, student, order, TEMPERATURE, ALPHA, 0)
    plain_loss = trainer.loss(*batch)
    our_loss.backward()
    plain_loss.backward()
    soft = torch.sigmoid(pack.targets.logits / TEMPERATURE)
    entropy = F.binary_cross_entropy(soft, soft)  # BCE of soft targets is the KL plus the teacher's entropy
    torch.testing.assert_close(our_loss + ALPHA * TEMPERATURE**2 * entropy, plain_loss, rtol=1e-4, atol=1e-5)
    for ours, plain in (
        (student.encoder[0].qkv.weight, plain_student.encoder.layers[0].self_attn.in_proj_weight),
        (student.encoder[5].ffn_out.weight, plain_student.encoder.layers[5].linear2.weight),
        (student.classify.weight, plain_student.classify.weight),
    ):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(
        torch.stack(attention_numbers(plain_teacher(*batch[1])[1], batch[1][1])),
        torch.stack([pack.targets.attention_entropy, pack.targets.attention_max]),
        rtol=1e-4,
        atol=1e-5,
    )

    student.train()
    plain_student.train()
    optimizer = FlatAdamW(student, recipe.weight_decay, recipe.clip_norm)

    def ours() -> None:
        optimizer.zero_grad()
        loss, _ = member_loss(pack, member, student, order, TEMPERATURE, ALPHA, 0)
        loss.backward()
        assert optimizer.step(recipe.learning_rate)

    compare(
        benchmark,
        ours,
        lambda: trainer.step(*batch),
        check=lambda *_: None,  # done above, where dropout is off
        seconds=20.0,
        baseline="eager fp32, padded, live teacher",
    )
