#!/usr/bin/env python3
"""One tuning step of PyTorch + PEFT on a CPU: forward, backward, AdamW on one sequence of random tokens.

usage: torch_step.py MODEL METHOD [--dtype bf16|f32] [--rank 64] [--tokens 512] [--checkpointing] [--compile] [--threads 2]
  MODEL    a Hugging Face folder of the same model that trimpot tunes (bench/peers/run.py makes none)
  METHOD   lora, qlora (bitsandbytes NF4, double quantization), full
Prints one JSON object: step_ms (median of 5 after a first one), tokens_per_second, peak_rss_mb, trainable.
Needs torch, transformers, peft; qlora: bitsandbytes.
"""
import argparse
import json
import resource
import statistics
import time

import torch
from transformers import AutoModelForCausalLM


def load(options):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    extra = {}
    if options.method == "qlora":
        from transformers import BitsAndBytesConfig

        extra = {
            "device_map": "cpu",
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
        }
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, local_files_only=True, **extra)
    model.config.use_cache = False
    if options.method == "qlora":
        from peft import prepare_model_for_kbit_training

        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=options.checkpointing)
    if options.method != "full":
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=options.rank, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
    if options.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model.train()
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("method", choices=["lora", "qlora", "full"])
    parser.add_argument("--dtype", choices=["bf16", "f32"], default="bf16")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = load(options)
    trainable = [p for p in model.parameters() if p.requires_grad]
    step_of = torch.compile(model) if options.compile else model
    optimizer = torch.optim.AdamW(trainable, lr=1e-5)
    tokens = torch.randint(0, model.config.vocab_size, (1, options.tokens))
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        step_of(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    step = statistics.median(seconds[1:])
    print(json.dumps({
        "step_ms": step * 1e3,
        "tokens_per_second": options.tokens / step,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
        "trainable": sum(p.numel() for p in trainable),
    }))


if __name__ == "__main__":
    main()
