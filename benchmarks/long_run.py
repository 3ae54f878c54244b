"""Chapter 07's recipe with more time: a longer run, its curve kept as JSON.

    python benchmarks/long_run.py            # about a quarter of an hour on two cores

The run lies in runs/long, so it can be stopped and started again; the result goes to
benchmarks/long_run.json.
"""

from dataclasses import asdict

import torch
from harness import HERE, REPO, corpus, machine, update, versions

from tinygpt_lib import FastConfig, TrainConfig, new_model, train

OUT = REPO / "runs" / "long"
MEAN_OF = 100  # steps, for the training curve


def main() -> None:
    tokenizer, train_ids, val_ids = corpus()
    model_config = FastConfig(
        tokenizer.vocab_size, block_size=128, n_layer=4, n_embd=160, dropout=0.05
    )
    config = TrainConfig(
        steps=6000, batch_size=12, learning_rate=3e-3, eval_every=500, save_every=500
    )
    torch.manual_seed(config.seed)
    history = train(
        new_model(model_config),
        train_ids,
        val_ids,
        config,
        out=OUT,
        tokenizer=tokenizer,
        resume=OUT.exists(),
    )
    losses = torch.tensor(history.losses).view(-1, MEAN_OF).mean(dim=1)
    result = {
        "model": asdict(model_config),
        "training": asdict(config),
        "seconds": round(history.seconds),
        "machine": machine(),
        "versions": versions(),
        "training_loss": [round(loss, 4) for loss in losses.tolist()],
        "mean_of": MEAN_OF,
        "evaluations": [(s, round(loss, 4)) for s, loss in history.evaluations],
    }
    update(HERE / "long_run.json", lambda data: data.update(result))
    print(result["evaluations"][-1], f"{history.seconds:.0f} s")


if __name__ == "__main__":
    main()
