"""Random transformations of training images by name, from torchvision's v2 transforms.

The random numbers of a batch or an image are a function of the seed, the epoch and its number, so a
continued run draws the same ones and skipped batches cost nothing.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from seven_exp.registry import Registry

Stage = Literal["pixels", "normalised", "batch"]
"""What a transform gets: one image of uint8 from 0 to 255; one normalised image; or a normalised
batch and its class indices, which it returns as probabilities (n, classes)."""

Probability = Annotated[float, Field(ge=0, le=1)]
Concentration = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Transform:
    """A registered transform.

    Attributes:
        make: Keyword-only arguments -> the transform; one for batches also takes the number of
            classes.
        stage: What the transform gets.
    """

    make: Callable[..., Any]
    stage: Stage


TRANSFORMS: Registry[Transform] = Registry("transform")


def transform(name: str, stage: Stage) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator that registers a function as `Transform.make`."""

    def add(make: Callable[..., Any]) -> Callable[..., Any]:
        TRANSFORMS.add(name, Transform(make, stage))
        return make

    return add


@transform("rand_augment", "pixels")
def rand_augment(
    *,
    num_ops: Annotated[int, Field(ge=1)] = 2,
    magnitude: Annotated[int, Field(ge=0, le=30)] = 9,
) -> Any:
    """RandAugment (Cubuk et al., arXiv 1909.13719)."""
    from torchvision.transforms import v2

    return v2.RandAugment(num_ops, magnitude)


@transform("trivial_augment", "pixels")
def trivial_augment() -> Any:
    """TrivialAugment, wide (Müller and Hutter, arXiv 2103.10158)."""
    from torchvision.transforms import v2

    return v2.TrivialAugmentWide()


@transform("random_erasing", "normalised")
def random_erasing(*, p: Probability = 0.25) -> Any:
    """Random erasing (Zhong et al., arXiv 1708.04896): a rectangle becomes the mean colour."""
    from torchvision.transforms import v2

    return v2.RandomErasing(p)


@transform("mixup", "batch")
def mixup(num_classes: int, *, alpha: Concentration = 0.2) -> Any:
    """MixUp (Zhang et al., arXiv 1710.09412)."""
    from torchvision.transforms import v2

    return v2.MixUp(alpha=alpha, num_classes=num_classes)


@transform("cutmix", "batch")
def cutmix(num_classes: int, *, alpha: Concentration = 1.0) -> Any:
    """CutMix (Yun et al., arXiv 1905.04899)."""
    from torchvision.transforms import v2

    return v2.CutMix(alpha=alpha, num_classes=num_classes)


@dataclass(frozen=True)
class Pipeline:
    """The transforms of a training split, in order; of several for batches, each draws one.

    Attributes:
        pixels: For one image before normalisation.
        normalised: For one image after it.
        batch: For a normalised batch and its targets.
    """

    pixels: tuple[Any, ...] = ()
    normalised: tuple[Any, ...] = ()
    batch: tuple[Any, ...] = ()

    @classmethod
    def of(cls, chosen: Mapping[str, Mapping[str, Any] | None], num_classes: int) -> "Pipeline":
        """The transforms of these names, with these keywords.

        Raises:
            ValueError: A name is unknown.
        """
        made: dict[str, list[Any]] = {"pixels": [], "normalised": [], "batch": []}
        for name, keywords in chosen.items():
            known = TRANSFORMS[name]
            given = (num_classes,) if known.stage == "batch" else ()
            made[known.stage].append(known.make(*given, **(keywords or {})))
        return cls(**{stage: tuple(those) for stage, those in made.items()})

    def on_images(self, stage: Literal["pixels", "normalised"], images: Tensor) -> Tensor:
        """Each image of a batch on its own."""
        steps = getattr(self, stage)
        return torch.stack([applied(steps, image) for image in images]) if steps else images

    def on_batch(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """One of the transforms for batches, drawn at random."""
        if not self.batch:
            return images, targets
        number = int(torch.randint(len(self.batch), ())) if len(self.batch) > 1 else 0
        mixed, probabilities = self.batch[number](images, targets)
        return mixed, probabilities


def applied(steps: tuple[Any, ...], image: Tensor) -> Tensor:
    """The image after all steps."""
    for step in steps:
        image = step(image)
    return image


@runtime_checkable
class Transformable(Protocol):
    """Training batches of images that can be transformed."""

    def transformed(self, pipeline: Pipeline) -> Any:
        """The same batches with these transforms."""
        ...


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Within the context torch's generator starts from this seed; afterwards it goes on."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
