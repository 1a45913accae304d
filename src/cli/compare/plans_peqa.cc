// Plans of PEQA's tables, and a short one.
#include "cli/compare/plans.h"

namespace trimpot::cli {
namespace {

constexpr BuiltinPlan kPeqaPlans[] = {
    {"quick", R"json({
 "title": "Methods in short",
 "about": "One method of each kind, as the papers compare them.",
 "base": [["quantize", "--method", "f32"]],
 "rows": [
  {"name": "unquantized"},
  {"name": "LoRA r=16 on 16 bits", "quantize": ["--method", "f16"],
   "tune": ["--method", "lora", "--lora-r", "16"]},
  {"name": "QLoRA r=16 on NF4", "quantize": ["--method", "nf4"],
   "tune": ["--method", "qlora", "--lora-r", "16"]},
  {"name": "PEQA 4 bits g128",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "128"],
   "tune": ["--method", "peqa"]},
  {"name": "QEFT k=16 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]}]
}
)json"},
    {"A", R"json({
 "title": "PEQA, Table A: groups",
 "about": "3 bits; LoRA on the unquantized model, merged, then OPTQ, against PEQA.",
 "base": [["quantize", "--method", "f32"]],
 "measure": ["ppl", "inspect"],
 "columns": ["bits", "base_bytes", "trainable", "tune_seconds", "tune_peak_mb",
  "quantize_seconds", "storage_bytes", "ppl_before", "ppl_after"],
 "plots": ["loss"],
 "rows": [
  {"name": "LoRA+OPTQ 3 bits channel-wise", "tune": ["--method", "lora"],
   "then": [["merge"], ["quantize", "--method", "optq", "--bits", "3", "--group-size", "-1"]]},
  {"name": "LoRA+OPTQ 3 bits g256", "tune": ["--method", "lora"],
   "then": [["merge"], ["quantize", "--method", "optq", "--bits", "3", "--group-size", "256"]]},
  {"name": "LoRA+OPTQ 3 bits g128", "tune": ["--method", "lora"],
   "then": [["merge"], ["quantize", "--method", "optq", "--bits", "3", "--group-size", "128"]]},
  {"name": "LoRA+OPTQ 3 bits g64", "tune": ["--method", "lora"],
   "then": [["merge"], ["quantize", "--method", "optq", "--bits", "3", "--group-size", "64"]]},
  {"name": "PEQA 3 bits channel-wise",
   "quantize": ["--method", "rtn", "--bits", "3", "--group-size", "-1"],
   "tune": ["--method", "peqa"]},
  {"name": "PEQA 3 bits g256",
   "quantize": ["--method", "rtn", "--bits", "3", "--group-size", "256"],
   "tune": ["--method", "peqa"]},
  {"name": "PEQA 3 bits g128",
   "quantize": ["--method", "rtn", "--bits", "3", "--group-size", "128"],
   "tune": ["--method", "peqa"]},
  {"name": "PEQA 3 bits g64",
   "quantize": ["--method", "rtn", "--bits", "3", "--group-size", "64"],
   "tune": ["--method", "peqa"]}]
}
)json"},
    {"B", R"json({
 "title": "PEQA, Table B: zero-points, scales, both",
 "about": "RTN, 4 bits, channel-wise and in groups of 64.",
 "base": [["quantize", "--method", "f32"]],
 "measure": ["ppl", "inspect", "switch"],
 "columns": ["bits", "trainable", "tune_seconds", "ppl_before", "ppl_after", "switch_bytes",
  "switch_ms"],
 "plots": ["loss"],
 "rows": [
  {"name": "zero-points, channel-wise",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "-1"],
   "tune": ["--method", "peqa-zero"]},
  {"name": "scales (PEQA), channel-wise",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "-1"],
   "tune": ["--method", "peqa"]},
  {"name": "both, channel-wise",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "-1"],
   "tune": ["--method", "peqa-both"]},
  {"name": "zero-points, g64",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "64"],
   "tune": ["--method", "peqa-zero"]},
  {"name": "scales (PEQA), g64",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "64"],
   "tune": ["--method", "peqa"]},
  {"name": "both, g64", "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "64"],
   "tune": ["--method", "peqa-both"]}]
}
)json"},
    {"D", R"json({
 "title": "PEQA, Table D: peak memory by batch size",
 "about": "Two steps of sequences of 512 tokens. LoRA on 16 bits, PEQA on 4 bits channel-wise. Sequences of a batch pass one after another, so memory depends on their length, not on their number.",
 "base": [["quantize", "--method", "f32"]],
 "defaults": {"tune": ["--max-steps", "2"]},
 "measure": [],
 "columns": ["base_bytes", "trainable", "tune_peak_mb"],
 "plots": ["memory"],
 "rows": [
  {"name": "LoRA, batch 1", "quantize": ["--method", "f16"],
   "tune": ["--method", "lora", "--batch-size", "1"]},
  {"name": "PEQA, batch 1",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "-1"],
   "tune": ["--method", "peqa", "--batch-size", "1"]},
  {"name": "LoRA, batch 2", "quantize": ["--method", "f16"],
   "tune": ["--method", "lora", "--batch-size", "2"]},
  {"name": "PEQA, batch 2",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "-1"],
   "tune": ["--method", "peqa", "--batch-size", "2"]},
  {"name": "LoRA, batch 4", "quantize": ["--method", "f16"],
   "tune": ["--method", "lora", "--batch-size", "4"]},
  {"name": "PEQA, batch 4",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "-1"],
   "tune": ["--method", "peqa", "--batch-size", "4"]},
  {"name": "LoRA, batch 8", "quantize": ["--method", "f16"],
   "tune": ["--method", "lora", "--batch-size", "8"]},
  {"name": "PEQA, batch 8",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "-1"],
   "tune": ["--method", "peqa", "--batch-size", "8"]}]
}
)json"},
};

}  // namespace

std::span<const BuiltinPlan> peqa_plans() { return kPeqaPlans; }

}  // namespace trimpot::cli
