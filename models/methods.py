"""RDPM and its rivals by name: what is learned with the blocks."""

from rdpm.models.generator import Generator, GeneratorConfig, MethodName
from rdpm.models.rivals.flow import FlowMatching
from rdpm.models.rivals.maskgit import MaskGIT
from rdpm.models.rivals.raster import Raster
from rdpm.models.rivals.rival import Rival
from rdpm.models.rivals.scale_wise import ScaleWise

RIVALS: dict[MethodName, type[FlowMatching] | type[MaskGIT] | type[Raster] | type[ScaleWise]] = {
    "flow": FlowMatching,
    "maskgit": MaskGIT,
    "raster": Raster,
    "scales": ScaleWise,
}


def new_generator(config: GeneratorConfig) -> Generator | Rival:
    """A generator of the config's method, with first weights. Raises ValueError for a token space that it cannot learn.

    Whatever the method, it has `loss`, `example` and `start_from`, and blocks under the name `transformer`.
    """
    return RIVALS.get(config.method, Generator)(config)


def learns_codes(config: GeneratorConfig) -> bool:
    """Whether the method learns and draws codes; otherwise latents."""
    rival = RIVALS.get(config.method)
    return rival is None or rival.LEARNS_CODES


def evaluations_of(config: GeneratorConfig, asked: int) -> int:
    """Forward passes per image when so many are asked for; 0 asks for the method's usual number.

    Raises ValueError for a number that the method cannot do.
    """
    if rival := RIVALS.get(config.method):
        return rival.evaluations(config, asked)
    if asked not in (0, config.num_steps):
        raise ValueError(f"evaluations is {asked}; method rdpm takes {config.num_steps}, one per step")
    return config.num_steps
