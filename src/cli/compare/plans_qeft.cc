// Plans of QEFT's tables and figures. Rates are the presets' (tune/methods.h).
#include "cli/compare/plans.h"

namespace trimpot::cli {
namespace {

constexpr BuiltinPlan kQeftPlans[] = {
    {"1", R"json({
 "title": "QEFT, Table 1: reordering and groups",
 "about": "k = 16 weak columns, 4 bits.",
 "base": [["quantize", "--method", "f32"]],
 "columns": ["bits", "storage_bytes", "ppl_before", "ppl_after", "task_after", "decode_tps"],
 "plots": ["speed"],
 "rows": [
  {"name": "gather per layer (OWQ), channel-wise",
   "quantize": ["--method", "owq", "--bits", "4", "--group-size", "-1", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "online reordering, channel-wise",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "-1", "--weak-columns", "16", "--reorder", "online"],
   "tune": ["--method", "qeft"]},
  {"name": "OGR, channel-wise",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "-1", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "gather per layer (OWQ), g128",
   "quantize": ["--method", "owq", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "online reordering, g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16", "--reorder", "online"],
   "tune": ["--method", "qeft"]},
  {"name": "OGR, g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]}]
}
)json"},
    {"2", R"json({
 "title": "QEFT, Table 2 and Figure 1: all methods",
 "about": "k is smaller than the paper's 128: it is a part of the model's width.",
 "base": [["quantize", "--method", "f32"]],
 "plots": ["speed", "time", "loss"],
 "rows": [
  {"name": "unquantized, 16 bits", "quantize": ["--method", "f16"]},
  {"name": "full fine-tuning", "tune": ["--method", "full"]},
  {"name": "LoRA r=64, 16 bits", "quantize": ["--method", "f16"], "tune": ["--method", "lora"]},
  {"name": "Platypus r=16, 8 bits", "quantize": ["--method", "int8"],
   "tune": ["--method", "platypus"]},
  {"name": "QLoRA r=64, NF4", "quantize": ["--method", "nf4"], "tune": ["--method", "qlora"]},
  {"name": "QA-LoRA r=64, 4 bits g32",
   "quantize": ["--method", "optq", "--bits", "4", "--group-size", "32", "--zeros", "float"],
   "tune": ["--method", "qalora"]},
  {"name": "PEQA, 4 bits channel-wise",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "-1"],
   "tune": ["--method", "peqa"]},
  {"name": "PEQA, 4 bits g64",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "64"],
   "tune": ["--method", "peqa"]},
  {"name": "quantization-aware training, 4 bits g128",
   "tune": ["--method", "qat", "--bits", "4", "--group-size", "128"]},
  {"name": "OWQ k=16, 4 bits",
   "quantize": ["--method", "owq", "--bits", "4", "--group-size", "-1", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "OWQ k=64, 4 bits",
   "quantize": ["--method", "owq", "--bits", "4", "--group-size", "-1", "--weak-columns", "64"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=16, 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=64, 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "64"],
   "tune": ["--method", "qeft"]}]
}
)json"},
    {"3", R"json({
 "title": "QEFT, Table 3: merging",
 "about": "What was tuned on the base is added to another model: here the base tuned on other data (--other-data).",
 "base": [["quantize", "--method", "f32"]],
 "measure": ["ppl", "task", "decode", "inspect"],
 "columns": ["bits", "storage_bytes", "decode_tps", "ppl_before", "ppl_after", "task_before",
  "task_after"],
 "plots": ["speed"],
 "rows": [
  {"name": "pre-trained model"},
  {"name": "target: tuned fully on other data",
   "tune": ["--method", "full", "--data", "@other-data"]},
  {"name": "LoRA on the base", "tune": ["--method", "lora"]},
  {"name": "QEFT k=16 on the base, 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "target + LoRA", "from": "@result:target: tuned fully on other data",
   "then": [["merge", "--onto-other", "--adapter", "@adapter:LoRA on the base"]]},
  {"name": "target + QEFT", "from": "@result:target: tuned fully on other data",
   "then": [["merge", "--onto-other", "--adapter", "@adapter:QEFT k=16 on the base, 4 bits g128"]]},
  {"name": "target in 4 bits + QEFT", "from": "@result:target: tuned fully on other data",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16", "--weak-columns-from", "@quantized:QEFT k=16 on the base, 4 bits g128"],
   "then": [["merge", "--onto-other", "--adapter", "@adapter:QEFT k=16 on the base, 4 bits g128"]]}]
}
)json"},
    {"5", R"json({
 "title": "QEFT, Table 5: 3 bits",
 "about": "",
 "base": [["quantize", "--method", "f32"]],
 "rows": [
  {"name": "QA-LoRA r=64, 3 bits g32",
   "quantize": ["--method", "optq", "--bits", "3", "--group-size", "32", "--zeros", "float"],
   "tune": ["--method", "qalora"]},
  {"name": "PEQA, 3 bits g64",
   "quantize": ["--method", "rtn", "--bits", "3", "--group-size", "64"],
   "tune": ["--method", "peqa"]},
  {"name": "OWQ k=16, 3 bits",
   "quantize": ["--method", "owq", "--bits", "3", "--group-size", "-1", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "OWQ k=64, 3 bits",
   "quantize": ["--method", "owq", "--bits", "3", "--group-size", "-1", "--weak-columns", "64"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=16, 3 bits g128",
   "quantize": ["--method", "qeft", "--bits", "3", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=64, 3 bits g128",
   "quantize": ["--method", "qeft", "--bits", "3", "--group-size", "128", "--weak-columns", "64"],
   "tune": ["--method", "qeft"]}]
}
)json"},
    {"6", R"json({
 "title": "QEFT, Table 6: quantizer of the base",
 "about": "QEFT k = 16: codes by min-max and rounding, or by OWQ's search and reconstruction.",
 "base": [["quantize", "--method", "f32"]],
 "measure": ["ppl", "task", "inspect"],
 "columns": ["bits", "quantize_seconds", "ppl_before", "ppl_after", "task_before", "task_after"],
 "plots": ["loss"],
 "rows": [
  {"name": "RTN, 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16", "--search", "minmax", "--reconstruct", "rtn"],
   "tune": ["--method", "qeft"]},
  {"name": "OWQ, 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "RTN, 3 bits g128",
   "quantize": ["--method", "qeft", "--bits", "3", "--group-size", "128", "--weak-columns", "16", "--search", "minmax", "--reconstruct", "rtn"],
   "tune": ["--method", "qeft"]},
  {"name": "OWQ, 3 bits g128",
   "quantize": ["--method", "qeft", "--bits", "3", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]}]
}
)json"},
    {"7", R"json({
 "title": "QEFT, Table 7: the number of weak columns",
 "about": "4 bits, groups of 128; the rate is the preset's for each k.",
 "base": [["quantize", "--method", "f32"]],
 "measure": ["ppl", "task", "inspect", "switch"],
 "columns": ["bits", "storage_bytes", "trainable", "tune_seconds", "ppl_before", "ppl_after",
  "task_after", "switch_bytes"],
 "plots": ["loss"],
 "rows": [
  {"name": "QEFT k=8",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "8"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=16",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=32",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "32"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=64",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "64"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "128"],
   "tune": ["--method", "qeft"]}]
}
)json"},
    {"8", R"json({
 "title": "QEFT, Table 8: quantization time and storage",
 "about": "OWQ channel-wise, QEFT in groups of 128, and QEFT by min-max and rounding as the paper did its 70B model.",
 "base": [["quantize", "--method", "f32"]],
 "measure": ["ppl", "inspect"],
 "columns": ["bits", "quantize_seconds", "quantize_peak_mb", "storage_bytes", "ppl_before"],
 "plots": [],
 "rows": [
  {"name": "QEFT k=16, 4 bits",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"]},
  {"name": "OWQ k=16, 4 bits",
   "quantize": ["--method", "owq", "--bits", "4", "--group-size", "-1", "--weak-columns", "16"]},
  {"name": "QEFT (min-max, rounding) k=16, 4 bits",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16", "--search", "minmax", "--reconstruct", "rtn"]},
  {"name": "QEFT k=16, 3 bits",
   "quantize": ["--method", "qeft", "--bits", "3", "--group-size", "128", "--weak-columns", "16"]},
  {"name": "OWQ k=16, 3 bits",
   "quantize": ["--method", "owq", "--bits", "3", "--group-size", "-1", "--weak-columns", "16"]},
  {"name": "QEFT (min-max, rounding) k=16, 3 bits",
   "quantize": ["--method", "qeft", "--bits", "3", "--group-size", "128", "--weak-columns", "16", "--search", "minmax", "--reconstruct", "rtn"]}]
}
)json"},
    {"9", R"json({
 "title": "QEFT, Table 9: forward and backward",
 "about": "One sequence of 512 tokens; layers are recomputed in the backward.",
 "base": [["quantize", "--method", "f32"]],
 "defaults": {"tune": ["--max-steps", "2"]},
 "measure": ["step"],
 "columns": ["trainable", "forward_ms", "backward_ms", "step_ms"],
 "plots": [],
 "rows": [
  {"name": "QEFT k=64, 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "64"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=16, 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "QLoRA r=64, NF4", "quantize": ["--method", "nf4"],
   "tune": ["--method", "qlora", "--lora-r", "64"]},
  {"name": "LoRA r=64, 16 bits", "quantize": ["--method", "f16"],
   "tune": ["--method", "lora", "--lora-r", "64"]},
  {"name": "PEQA, 4 bits g128",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "128"],
   "tune": ["--method", "peqa"]}]
}
)json"},
    {"10", R"json({
 "title": "QEFT, Table 10 and Figure 8: memory of tuning",
 "about": "Sequences of 512 tokens, batches of one; two steps.",
 "base": [["quantize", "--method", "f32"]],
 "defaults": {"tune": ["--max-steps", "2", "--batch-size", "1"]},
 "measure": [],
 "columns": ["base_bytes", "trainable", "tune_peak_mb"],
 "plots": ["memory"],
 "rows": [
  {"name": "LoRA r=64, 16 bits", "quantize": ["--method", "f16"], "tune": ["--method", "lora"]},
  {"name": "Platypus r=16, 8 bits", "quantize": ["--method", "int8"],
   "tune": ["--method", "platypus"]},
  {"name": "QLoRA r=64, NF4", "quantize": ["--method", "nf4"], "tune": ["--method", "qlora"]},
  {"name": "QA-LoRA r=64, 4 bits g32",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "32", "--zeros", "float"],
   "tune": ["--method", "qalora"]},
  {"name": "PEQA, 4 bits g128",
   "quantize": ["--method", "rtn", "--bits", "4", "--group-size", "128"],
   "tune": ["--method", "peqa"]},
  {"name": "OWQ k=16, 4 bits",
   "quantize": ["--method", "owq", "--bits", "4", "--group-size", "-1", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]},
  {"name": "QEFT k=16, 4 bits g128",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16"],
   "tune": ["--method", "qeft"]}]
}
)json"},
    {"11", R"json({
 "title": "QEFT, Table 11: peak memory of quantization",
 "about": "One calibration sample is in memory at a time: the peak does not grow with their number.",
 "base": [["quantize", "--method", "f32"]],
 "measure": [],
 "columns": ["quantize_seconds", "quantize_peak_mb", "storage_bytes"],
 "plots": [],
 "rows": [
  {"name": "QEFT k=16, 8 samples of 512",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16", "--calib-samples", "8"]},
  {"name": "QEFT k=16, 32 samples of 512",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16", "--calib-samples", "32"]},
  {"name": "QEFT k=16, 128 samples of 512",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "16", "--calib-samples", "128"]},
  {"name": "OPTQ g128, 8 samples of 512",
   "quantize": ["--method", "optq", "--bits", "4", "--group-size", "128", "--calib-samples", "8"]},
  {"name": "OPTQ g128, 32 samples of 512",
   "quantize": ["--method", "optq", "--bits", "4", "--group-size", "128", "--calib-samples", "32"]},
  {"name": "OPTQ g128, 128 samples of 512",
   "quantize": ["--method", "optq", "--bits", "4", "--group-size", "128", "--calib-samples", "128"]}]
}
)json"},
    {"fig3a", R"json({
 "title": "QEFT, Figure 3a: weak columns by block",
 "about": "The 8 weak columns of each input, chosen by layer (OWQ) and for all layers (QEFT).",
 "base": [["quantize", "--method", "f32"]],
 "measure": ["inspect"],
 "columns": ["bits", "storage_bytes"],
 "plots": ["weak-columns"],
 "rows": [
  {"name": "OWQ k=8",
   "quantize": ["--method", "owq", "--bits", "4", "--group-size", "-1", "--weak-columns", "8"]},
  {"name": "QEFT k=8",
   "quantize": ["--method", "qeft", "--bits", "4", "--group-size", "128", "--weak-columns", "8"]}]
}
)json"},
    {"fig5", R"json({
 "title": "QEFT, Figure 5: sensitivity and gradient",
 "about": "Input channels of the query projection in a middle layer, 4 bits channel-wise.",
 "base": [["quantize", "--method", "f32"]],
 "measure": ["columns", "inspect"],
 "defaults": {"columns": ["--layer", "10"]},
 "columns": ["bits"],
 "plots": ["sensitivity"],
 "rows": [
  {"name": "unquantized"}]
}
)json"},
};

}  // namespace

std::span<const BuiltinPlan> qeft_plans() { return kQeftPlans; }

}  // namespace trimpot::cli
