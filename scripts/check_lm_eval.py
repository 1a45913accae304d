#!/usr/bin/env python3
"""lm-eval's own tasks on a local file against `trimpot eval`, item by item: same log-likelihoods, same decisions.

usage: check_lm_eval.py TRIMPOT MODEL.gguf --task TASK -f FILE [--limit 50] [--num-fewshot N --fewshot-file FILE]
           --lm hf --lm-args pretrained=FOLDER,dtype=float32,device=cpu     the same weights as a transformers model
           --precision f32

Needs Python with lm-eval 0.4.13 (and torch and transformers for --lm hf), no network: prompts, scoring and metrics are
those of lm-eval's task files, only the data set comes from FILE, in the format that trimpot reads. Any of lm-eval's
models may stand behind --lm. Examples are the file's first ones (lm-eval's sampler "first_n").

A log-likelihood may differ by TOLERANCE, and a decision only where the two best choices are nearer than that. gsm8k:
texts of greedy decoding are compared; where two tokens are nearly equal, either may come. Exit status 1 otherwise.
"""
import argparse
import csv
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

TOLERANCE = 1e-3

# trimpot's task: where lm-eval keeps its own
TASKS = {
    "hellaswag": "hellaswag/hellaswag.yaml",
    "arc": "arc/arc_easy.yaml",
    "mmlu": "mmlu/default/_default_template_yaml",
    "truthfulqa-mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "truthfulqa-mc2": "truthfulqa/truthfulqa_mc2.yaml",
    "winogrande": "winogrande/default.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
}


def json_rows(path):
    text = pathlib.Path(path).read_text(encoding="utf-8")
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line]


def six_lines(path):
    lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
    return [{"query": lines[i], "gold": lines[i + 1], "choices": lines[i + 2:i + 6]} for i in range(0, len(lines) - 5, 6)]


def stem_row(row, question_name):
    choices = row["question"]["choices"]
    return {question_name: row["question"]["stem"], "answerKey": row["answerKey"],
            "choices": {"text": [choice["text"] for choice in choices], "label": [choice["label"] for choice in choices]}}


def targets(row, name):
    return {"question": row["question"],
            name: {"choices": list(row[name]), "labels": list(row[name].values())}}


def read_rows(task, path):
    """Rows as lm-eval's task wants them, which is how the Hugging Face hub has the data set."""
    if task == "hellaswag" and pathlib.Path(path).read_text(encoding="utf-8").lstrip()[:1] not in "{[":
        return six_lines(path)
    if task == "hellaswag":
        return [row | {"label": str(row["label"])} for row in json_rows(path)]
    if task == "mmlu":
        with open(path, newline="", encoding="utf-8") as file:
            return [{"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])} for row in csv.reader(file)]
    if task == "arc":
        return [stem_row(row, "question") for row in json_rows(path)]
    if task == "openbookqa":
        return [stem_row(row, "question_stem") for row in json_rows(path)]
    if task.startswith("truthfulqa"):
        return [targets(row, task[-3:] + "_targets") for row in json_rows(path)]
    return json_rows(path)


def task_config(args):
    """lm-eval's task with FILE in the place of its data set."""
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(pathlib.Path(lm_eval.tasks.__file__).parent / TASKS[args.task])
    splits = {"test": datasets.Dataset.from_list(read_rows(args.task, args.file))}
    if args.fewshot_file:
        splits["train"] = datasets.Dataset.from_list(read_rows(args.task, args.fewshot_file))
    config.update(task="local_" + args.task, dataset_path=None, dataset_name=None, custom_dataset=lambda **_: splits,
                  training_split=None, validation_split=None, test_split="test",
                  fewshot_split="train" if args.fewshot_file else "test", fewshot_config={"sampler": "first_n"})
    for name in ("tag", "group", "dataset_kwargs"):
        config.pop(name, None)
    if args.task == "hellaswag" and "query" in splits["test"].column_names:
        config.pop("process_docs")
        config["doc_to_target"] = "{{gold}}"
    if args.task == "mmlu":
        subject = pathlib.Path(args.file).stem
        for split in ("_test", "_dev", "_val"):
            subject = subject.removesuffix(split)
        config["description"] = ("The following are multiple choice questions (with answers) about "
                                 f"{subject.replace('_', ' ')}.\n\n")
    return config


def truthfulqa_preamble(config):
    """The six examples that lm-eval's prompt begins with."""
    return config["doc_to_text"].partition("prompt_qa = '")[2].partition("'%}")[0] + "\n\n"


def run_lm_eval(args):
    import lm_eval

    results = lm_eval.simple_evaluate(model=args.lm, model_args=args.lm_args, tasks=[task_config(args)],
                                      num_fewshot=args.num_fewshot, limit=args.limit, batch_size=args.batch_size,
                                      bootstrap_iters=0)
    name = "local_" + args.task
    samples = {}
    for sample in results["samples"][name]:  # one per filter
        samples[sample["doc_id"]] = sample
    metrics = {key.replace(",none", ""): value for key, value in results["results"][name].items()
               if isinstance(value, float)}
    return [samples[index] for index in sorted(samples)], metrics


def run_trimpot(args):
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "items.jsonl"
        command = [args.trimpot, "eval", "generate" if args.task == "gsm8k" else "choice", "-m", args.model, "--task",
                   args.task, "-f", args.file, "--limit", str(args.limit), "--num-fewshot", str(args.num_fewshot),
                   "--precision", args.precision, "--json", "-o", str(output)]
        if args.fewshot_file:
            command += ["--fewshot-file", args.fewshot_file]
        if args.task.startswith("truthfulqa"):
            preamble = pathlib.Path(folder) / "preamble.txt"
            preamble.write_text(truthfulqa_preamble(task_config(args)), encoding="utf-8")
            command += ["--preamble", str(preamble)]
        if args.adapter:
            command += ["--adapter", args.adapter]
        metrics = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        return [json.loads(line) for line in output.read_text().splitlines()], metrics


def compare_choices(theirs, ours):
    worst, problems = 0.0, []
    for index, (sample, item) in enumerate(zip(theirs, ours)):
        # [(log-likelihood, is greedy)] by choice
        pairs = [(float(response[0][0]), str(response[0][1]) == "True") for response in sample["resps"]]
        if len(pairs) != len(item["log_likelihoods"]):
            problems.append(f"item {index}: {len(pairs)} choices against {len(item['log_likelihoods'])}")
            continue
        difference = max(abs(a[0] - b) for a, b in zip(pairs, item["log_likelihoods"]))
        worst = max(worst, difference)
        if difference > TOLERANCE:
            problems.append(f"item {index}: a log-likelihood differs by {difference:.5f}")
        best = max(range(len(pairs)), key=lambda i: pairs[i][0])
        margin = abs(pairs[best][0] - pairs[item["picked"]][0])
        if margin > TOLERANCE:
            problems.append(f"item {index}: choice {best} against {item['picked']}, {margin:.5f} apart")
        if [greedy for _, greedy in pairs] != item["greedy"]:
            problems.append(f"item {index}: other endings are greedy")
    print(f"{len(ours)} items, largest difference of a log-likelihood: {worst:.6f}")
    return problems


def compare_texts(theirs, ours):
    same = sum(sample["resps"][0][0].strip() == item["answer"].strip() for sample, item in zip(theirs, ours))
    print(f"{len(ours)} items, {same} texts are the same to the last character")
    return [] if same >= 0.9 * len(ours) else ["too many texts differ"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trimpot")
    parser.add_argument("model")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("-f", "--file", required=True)
    parser.add_argument("--fewshot-file")
    parser.add_argument("--num-fewshot", type=int, default=0)
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--adapter")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--lm", default="hf")
    parser.add_argument("--lm-args", required=True)
    parser.add_argument("--batch-size", type=int, default=4)
    args = parser.parse_args()

    ours, our_metrics = run_trimpot(args)
    theirs, their_metrics = run_lm_eval(args)
    for name, value in their_metrics.items():
        print(f"lm-eval {name}: {value:.5f}" + (f", trimpot: {our_metrics[name]:.5f}" if name in our_metrics else ""))
    problems = [] if len(ours) == len(theirs) else [f"{len(theirs)} items against {len(ours)}"]
    problems += (compare_texts if args.task == "gsm8k" else compare_choices)(theirs, ours)
    print("\n".join(problems) if problems else "lm-eval and trimpot agree")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
