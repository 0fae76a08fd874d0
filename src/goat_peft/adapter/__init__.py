"""The PEFT tuner: configuration, layer, model. Importing it registers method `goat` with PEFT."""

from .config import GoatConfig
from .layer import GoatLayer
from .layer import Linear as GoatLinear
from .model import GoatModel
from .registration import register
from .together import initialize_together
from .trainer import BalanceLossMixin

register(GoatConfig, GoatModel)

__all__ = ["BalanceLossMixin", "GoatConfig", "GoatLayer", "GoatLinear", "GoatModel", "initialize_together"]
