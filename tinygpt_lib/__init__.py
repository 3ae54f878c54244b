"""A small GPT, built step by step in the notebooks of tiny-gpt-from-scratch.

Each module beside this one is generated from the notebook of the same name, which
explains it line by line. What makes them safe to use is written by hand: `basics` below
them, `runs` and `commands` above.
"""

import os

# OpenMP's threads spin while they wait for each other; beside other work they then keep
# each other from running. A thousand rounds cost a quiet machine nothing, and then they
# sleep. Torch reads this when it is loaded, so import it after this package; a setting
# of yours stands.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"

from tinygpt_lib._version import __version__
from tinygpt_lib.basics.corpus import CorpusError, load_shakespeare
from tinygpt_lib.basics.devices import choose_device
from tinygpt_lib.basics.files import CheckpointError
from tinygpt_lib.basics.loglines import read_lines
from tinygpt_lib.bigram import NGram, evaluate, training_step
from tinygpt_lib.blocks import Block, Dropout, FeedForward, LayerNorm
from tinygpt_lib.generation import KVCache
from tinygpt_lib.gpt import GPT, GPTConfig
from tinygpt_lib.logs import (
    EventTokenizer,
    Masks,
    SessionFinder,
    bits_per_event,
    group_lines,
    surprisals,
)
from tinygpt_lib.long_context import (
    WindowCache,
    loss_by_position,
    sliding_attention,
    with_context,
)
from tinygpt_lib.modern_parts import RMSNorm
from tinygpt_lib.multi_head import MultiHeadAttention
from tinygpt_lib.representations import attention_maps, embed, hidden_states
from tinygpt_lib.runs.checkpoints import load_checkpoint, save_checkpoint
from tinygpt_lib.runs.detectors import AnomalyDetector
from tinygpt_lib.runs.fast import keep_freed_memory
from tinygpt_lib.runs.models import new_model
from tinygpt_lib.runs.processes import processes
from tinygpt_lib.runs.run import train
from tinygpt_lib.runs.sampling import generate
from tinygpt_lib.runs.settings import TrainConfig
from tinygpt_lib.runs.streams import EventStream
from tinygpt_lib.scaling_out import shard
from tinygpt_lib.single_head import attention
from tinygpt_lib.speed import FastConfig, FastGPT, Muon
from tinygpt_lib.text import CharTokenizer, get_batch, split
from tinygpt_lib.tokenizers import BPETokenizer, ByteTokenizer, WordTokenizer
from tinygpt_lib.training import AdamW

__all__ = [
    "GPT",
    "AdamW",
    "AnomalyDetector",
    "BPETokenizer",
    "Block",
    "ByteTokenizer",
    "CharTokenizer",
    "CheckpointError",
    "CorpusError",
    "Dropout",
    "EventStream",
    "EventTokenizer",
    "FastConfig",
    "FastGPT",
    "FeedForward",
    "GPTConfig",
    "KVCache",
    "LayerNorm",
    "Masks",
    "MultiHeadAttention",
    "Muon",
    "NGram",
    "RMSNorm",
    "SessionFinder",
    "TrainConfig",
    "WindowCache",
    "WordTokenizer",
    "__version__",
    "attention",
    "attention_maps",
    "bits_per_event",
    "choose_device",
    "embed",
    "evaluate",
    "generate",
    "get_batch",
    "group_lines",
    "hidden_states",
    "keep_freed_memory",
    "load_checkpoint",
    "load_shakespeare",
    "loss_by_position",
    "new_model",
    "processes",
    "read_lines",
    "save_checkpoint",
    "shard",
    "sliding_attention",
    "split",
    "surprisals",
    "train",
    "training_step",
    "with_context",
]
