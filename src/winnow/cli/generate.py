"""winnow generate: continue a prompt.   (floor 8 · cli)"""

import argparse
from collections.abc import Iterator, Sequence

import torch

from winnow.base.errors import UsageError
from winnow.cli.failures import say
from winnow.cli.opening import open_engine, read_context, read_prompt, read_text
from winnow.cli.show import quantity, share, show_json, show_table
from winnow.engine.generate import Engine, GenerateOptions, Piece, Stats
from winnow.engine.sampling import SamplingOptions
from winnow.engine.sparsity import compare, windows


def run(arguments: argparse.Namespace) -> int:
    """Stream the answer to standard output, or print it as one JSON object."""
    if arguments.logprobs and not arguments.json:
        raise UsageError("--logprobs are printed with --json only; add --json.")
    options = request(arguments)
    prompt = _prompt(arguments)
    plan = None if arguments.dense else arguments.plan or "auto"
    context = read_context(arguments)
    engine = open_engine(arguments, plan, arguments.device, arguments.kv, context, arguments.constant_work)
    pieces = list(_shown(engine.run(prompt, options), quiet=arguments.json))
    stats = engine.last_stats
    assert stats is not None
    if arguments.json:
        show_json(_completion(pieces, stats))
    elif not arguments.quiet:
        say(_summary(stats))
    if arguments.explain:
        _explain(engine, prompt, [piece.token_id for piece in pieces])
    return 0


def _prompt(arguments: argparse.Namespace) -> str:
    if arguments.prompt_file is None:
        return read_prompt(arguments.prompt)
    return read_text(arguments.prompt_file, "--prompt-file").removesuffix("\n").removesuffix("\r")


def request(arguments: argparse.Namespace) -> GenerateOptions:
    """Return what the options of generate and chat ask of the engine."""
    sampling = SamplingOptions(
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        logit_bias=dict(arguments.logit_bias),
        seed=arguments.seed,
    )
    return GenerateOptions(
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        stop=tuple(arguments.stop),
        ignore_eos=arguments.ignore_eos,
        logprobs=arguments.logprobs,
    )


def _shown(pieces: Iterator[Piece], *, quiet: bool) -> Iterator[Piece]:
    """Pass `pieces` on, each printed as it comes unless `quiet`, and end the line after the last."""
    for piece in pieces:
        if not quiet:
            print(piece.text, end="", flush=True)
        yield piece
    if not quiet:
        print(flush=True)


def _completion(pieces: Sequence[Piece], stats: Stats) -> dict[str, object]:
    """Return the JSON object of one generation."""
    answer: dict[str, object] = {
        "text": "".join(piece.text for piece in pieces),
        "token_ids": [piece.token_id for piece in pieces],
        "finish_reason": pieces[-1].finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "stats": {
            "tokens_per_second": stats.tokens_per_second,
            "ttft_s": stats.ttft_s,
            "mlp_density": stats.mlp_density,
            "head_density": stats.head_density,
            "bytes_per_token": stats.bytes_per_token,
        },
    }
    if pieces[0].logprob is not None:
        answer["logprobs"] = [piece.logprob for piece in pieces]
    return answer


def _summary(stats: Stats) -> str:
    heads = f"heads {share(stats.head_density)}, " if stats.head_density < 1 else ""
    return (
        f"{stats.tokens_per_second:.1f} tokens/s, first after {stats.ttft_s:.2f} s, "
        f"density {share(stats.mlp_density)}, {heads}{quantity(stats.bytes_per_token)} read per token"
    )


def _explain(engine: Engine, prompt: str, answer: Sequence[int]) -> None:
    """Print per layer, on standard error, what the decode steps selected, read and took.

    Recall is measured afterwards on prompt and answer: of the contributions, |activation| * |w_out|, the
    share of the selected neurons. Counting neurons would say nothing of SiLU, where all of them fire.
    """
    assert engine.last_stats is not None
    counts = engine.last_stats.counts
    if not counts.steps:
        say("nothing to explain: the first token is read off the prompt's dense pass; raise --max-tokens.")
        return
    config, steps = engine.weights.config, counts.steps
    recalls = _recalls(engine, [*engine.tokenizer.encode(prompt), *answer])
    rows = []
    for index, layer in enumerate(engine.weights.layers):
        predictor = engine.decoder.predictors[index]
        n_bytes, active = counts.n_bytes[index] / steps, counts.active[index] / steps
        mlp_bytes = config.n_neurons * layer.mlp.record_bytes
        saved = mlp_bytes - predictor.bytes_read(layer.mlp, active) if predictor else 0
        dense_bytes = n_bytes + saved
        rows.append(
            [
                f"layer {index}",
                share(active / config.n_neurons),
                recalls[index],
                quantity(n_bytes),
                quantity(dense_bytes),
                f"{1e6 * counts.seconds[index] / steps:.0f} us",
            ]
        )
    head = quantity(counts.head_bytes / steps)
    rows.append(["head", "", "", head, head, ""])
    columns = ("per token", "density", "weighted recall", "bytes read", "dense", "time")
    show_table(f"{steps} decoded tokens on {engine.cpu.threads} threads", columns, rows, on_stderr=True)


def _recalls(engine: Engine, ids: Sequence[int]) -> list[str]:
    """Return the weighted recall of every layer's predictor on `ids`; a layer without one has none."""
    if engine.plan is None:
        return ["-"] * len(engine.weights.layers)
    texts: list[torch.Tensor] = list(windows(ids, ()))
    measured = compare(engine.weights, engine.plan, texts, lambda done: None)
    return [
        "-" if predictor is None else share(layer.weighted_recall)
        for layer, predictor in zip(measured.layers, engine.plan.layers, strict=True)
    ]
