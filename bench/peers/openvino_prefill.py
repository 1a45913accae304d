#!/usr/bin/env python3
"""OpenVINO's prefill: the model in int4 with an int8 embedding and head, one batch of random tokens, logits of the last.

usage: openvino_prefill.py MODEL [--ir FILE.xml] [--tokens 512] [--threads 2]
  MODEL   a Hugging Face folder of the same model
  --ir    where the converted model is kept (made if it is not there: a minute)
Prints one JSON object: tokens_per_second (median of 5 runs after two), peak_rss_mb.
Needs torch, transformers, openvino, nncf.
"""
import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import numpy
import openvino


def convert(options):
    import nncf
    import torch
    from transformers import AutoModelForCausalLM

    class LastLogits(torch.nn.Module):
        """Without a cache: what a prefill computes, and no logits that nobody asked for."""

        def __init__(self, model):
            super().__init__()
            self.model = model
            # Made here: what transformers does to find packed sequences cannot be converted.
            self.mask = torch.ones(options.tokens, options.tokens, dtype=torch.bool).tril()[None, None]
            self.positions = torch.arange(options.tokens)[None]

        def forward(self, input_ids):
            hidden = self.model.model(input_ids=input_ids, attention_mask=self.mask, position_ids=self.positions,
                                      use_cache=False).last_hidden_state
            return self.model.lm_head(hidden[:, -1:])

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, local_files_only=True,
                                                 attn_implementation="sdpa").eval()
    example = torch.randint(0, model.config.vocab_size, (1, options.tokens))
    with torch.no_grad():
        converted = openvino.convert_model(LastLogits(model), example_input=example, input=[1, options.tokens])
    # Its usual recipe for language models: groups of 64 with zero-points, embedding and head in 8 bits.
    converted = nncf.compress_weights(converted, mode=nncf.CompressWeightsMode.INT4_ASYM, group_size=64)
    openvino.save_model(converted, options.ir)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--ir", type=Path, default=Path("openvino-int4.xml"))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not options.ir.exists():
        convert(options)
    core = openvino.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": options.threads, "NUM_STREAMS": 1}
    compiled = core.compile_model(str(options.ir), "CPU", settings)
    request = compiled.create_infer_request()
    tokens = numpy.random.default_rng(1).integers(0, 49152, (1, options.tokens), dtype=numpy.int64)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        request.infer({0: tokens})
        seconds.append(time.perf_counter() - start)
    logits = request.get_output_tensor(0).data
    print(json.dumps({"tokens_per_second": options.tokens / statistics.median(seconds[2:]),
                      "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                      "logits": list(logits.shape), "finite": bool(numpy.isfinite(logits).all())}))


if __name__ == "__main__":
    main()
