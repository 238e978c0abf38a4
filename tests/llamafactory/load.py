"""Load a data set with LLaMA-Factory's own loader, and print its token ids and labels; runs in LLaMA-Factory's venv.

load.py MODEL FOLDER NAME TEMPLATE STAGE
"""

import contextlib
import json
import sys

with contextlib.redirect_stdout(sys.stderr):
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    model, folder, name, template_name, stage = sys.argv[1:]
    arguments = {
        "model_name_or_path": model, "stage": stage, "do_train": True, "finetuning_type": "full", "dataset_dir": folder,
        "dataset": name, "template": template_name, "cutoff_len": 4096, "output_dir": f"{folder}/trained",
        "use_cpu": True, "overwrite_cache": True, "preprocessing_num_workers": 1, "report_to": "none",
    }  # fmt: skip
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    rows = get_dataset(template, model_args, data_args, training_args, stage, **module)["train_dataset"]
    found = [dict(row) for row in rows]
json.dump(found, sys.stdout)
