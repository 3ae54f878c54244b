"""All settings of a run, and the tables in which their names are looked up."""

from dataclasses import dataclass

from tinygpt_lib import training
from tinygpt_lib.basics.checks import check_choice, check_float, check_int
from tinygpt_lib.runs.fast import bfloat16, compiled
from tinygpt_lib.speed import FusedAdamW, Muon
from tinygpt_lib.training import COOLDOWNS

OPTIMIZERS = {
    "adamw": lambda model, config: FusedAdamW(
        model.parameters(),
        config.learning_rate,
        (config.beta1, config.beta2),
        weight_decay=config.weight_decay,
    ),
    "muon": Muon.of,
}
WHOLE_ONLY = {"muon"}  # optimizers that need whole matrices: no sharded models
ENGINES = {  # (model, config) -> ids -> logits
    "eager": lambda model, config: model,
    "bfloat16": bfloat16,
    "compiled": compiled,
}
RANGES = (  # of settings that need not be whole numbers
    (("weight_decay",), "at least 0 and at most 1e18", lambda x: 0 <= x <= 1e18),
    (("warmup", "cooldown"), "in the range 0..1", lambda x: 0 <= x <= 1),
    (("beta1", "beta2"), "at least 0 and below 1", lambda x: 0 <= x < 1),
    (
        ("learning_rate", "matrix_rate", "clip"),
        "above 0 and at most 1e18",
        lambda x: 0 < x <= 1e18,
    ),
)
# A run may go on with others: the next machine may lack what this one has.
MAY_CHANGE = {"accumulate", "engine"}


@dataclass
class TrainConfig(training.TrainConfig):
    """All that describes a training run; ValueError for what makes no sense."""

    accumulate: int = 1  # parts that a batch is gone through in, to save memory
    context: int = 0  # tokens in a window; 0: the model's block_size
    optimizer: str = "adamw"  # a name in OPTIMIZERS
    engine: str = "eager"  # a name in ENGINES
    matrix_rate: float = 0.03  # Muon's learning rate, for the matrices of the blocks
    save_every: int = 250  # steps between checkpoints

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "save_every"):
            check_int(name, getattr(self, name), low=1)
        for name in ("context", "eval_every", "seed"):
            check_int(name, getattr(self, name), low=0)
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} can't be cut into accumulate "
                f"{self.accumulate} equal parts"
            )
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("engine", self.engine, ENGINES)
        check_choice("cooldown_shape", self.cooldown_shape, COOLDOWNS)
        for names, allowed, inside in RANGES:
            for name in names:
                check_float(name, getattr(self, name), allowed, inside)
        if self.warmup + self.cooldown > 1 + 1e-9:
            raise ValueError(
                f"warmup {self.warmup} and cooldown {self.cooldown} overlap; together "
                "they must be at most 1"
            )
