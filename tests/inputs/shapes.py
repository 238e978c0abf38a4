"""The columns of widely used data sets, with texts of our own, and what each row must be read as."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Q, S, T = "What is 6 times 7?", "Six times seven is 42.", "Six sevens are 42, because 6 times 7 is 42."
THINK = f"<think>\n{T}\n</think>\n\n{S}"
TAGGED = f"<|begin_of_thought|>\n\n{T}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{S}\n\n<|end_of_solution|>"
SYSTEM = "Think before you answer."


def chat(answer: str = S, *, names: tuple[str, str] = ("role", "content"), system: str | None = None) -> list[Any]:
    """Return a chat of one question and one answer, with ``from`` and ``value`` or ``role`` and ``content``."""
    speakers = ("user", "assistant") if names[0] == "role" else ("human", "gpt")
    turns = [("system", system)] if system is not None else []
    turns += [(speakers[0], Q), (speakers[1], answer)]
    return [dict(zip(names, turn, strict=True)) for turn in turns]


SHAREGPT = ("from", "value")


@dataclass(frozen=True)
class Shape:
    """A data set's row and how it is read.

    Attributes:
        name: the data set on the Hub.
        data: a row.
        solution: the solution; None: the row is bad, or its columns must be named.
        answer: the answer.
        thought: the explanation.
        question: the question.
        system: the system text.
        flags: settings that are needed, by name; without them, the row is refused or its trace not read.
        refused: the message without the flags, or of the bad row.
        note: what the table of the documentation adds.
    """

    name: str
    data: dict[str, Any]
    solution: str | None = S
    answer: str | None = None
    thought: str | None = None
    question: str = Q
    system: str | None = None
    flags: dict[str, str] = field(default_factory=dict)
    refused: str = ""
    note: str = ""


LISTED = f"{Q}\n\nA. 40\nB. 42"

SHAPES = [
    Shape("openai/gsm8k", {"question": Q, "answer": "6 * 7 = <<6*7=42>>42\n#### 42"},
          "6 * 7 = 42\nThe answer is 42.", "42"),
    Shape("EleutherAI/hendrycks_math", {"problem": Q, "level": "Level 1", "type": "Algebra", "solution": S}),
    Shape("HuggingFaceH4/MATH-500", {"problem": Q, "solution": S, "answer": "42", "subject": "Algebra", "level": 1,
                                     "unique_id": "test/1.json"}, answer="42"),
    Shape("open-thoughts/OpenThoughts-114k",
          {"system": SYSTEM, "conversations": [{"from": "user", "value": Q}, {"from": "assistant", "value": TAGGED}]},
          thought=T, system=SYSTEM),
    Shape("open-thoughts/OpenThoughts-114k, metadata",
          {"problem": Q, "deepseek_reasoning": T, "deepseek_solution": S, "ground_truth_solution": S, "domain": "math",
           "source": "x", "test_cases": None, "starter_code": None},
          thought=T, flags={"solution_column": "deepseek_solution", "explanation_column": "deepseek_reasoning"},
          refused="name them with --solution-column"),
    Shape("open-thoughts/OpenThoughts2-1M",
          {"conversations": chat(THINK, names=SHAREGPT), "question": Q, "source": "x", "id": 3}, thought=T),
    Shape("open-thoughts/OpenThoughts3-1.2M",
          {"difficulty": 7, "source": "x", "domain": "math", "conversations": chat(THINK, names=SHAREGPT)}, thought=T),
    Shape("open-r1/OpenR1-Math-220k",
          {"problem": Q, "solution": S, "answer": "42", "problem_type": "Algebra", "question_type": "math-word-problem",
           "source": "x", "uuid": "u", "is_reasoning_complete": [True], "generations": [THINK],
           "correctness_math_verify": [True], "correctness_llama": None, "finish_reasons": ["stop"],
           "correctness_count": 1, "messages": chat(THINK)}, answer="42", thought=T,
          note="a row per generation"),
    Shape("open-r1/Mixture-of-Thoughts", {"messages": chat(THINK), "num_tokens": 40, "source": "x"}, thought=T),
    Shape("bespokelabs/Bespoke-Stratos-17k",
          {"system": SYSTEM, "conversations": [{"from": "user", "value": Q}, {"from": "assistant", "value": TAGGED}]},
          thought=T, system=SYSTEM),
    Shape("NovaSky-AI/Sky-T1_data_17k",
          {"system": SYSTEM, "conversations": [{"from": "user", "value": Q}, {"from": "assistant", "value": TAGGED}]},
          thought=T, system=SYSTEM),
    Shape("simplescaling/s1K",
          {"solution": S, "question": Q, "cot_type": "math", "source_type": "x", "metadata": "{}", "cot": None,
           "thinking_trajectories": [T], "attempt": S}, thought=T),
    Shape("simplescaling/s1K-1.1",
          {"solution": S, "question": Q, "cot_type": "math", "source_type": "x", "metadata": "{}",
           "gemini_thinking_trajectory": T, "gemini_attempt": S, "deepseek_thinking_trajectory": T,
           "deepseek_attempt": S, "gemini_grade": "Yes", "gemini_grade_reason": "The attempt is right, as 42 is.",
           "deepseek_grade": "Yes", "deepseek_grade_reason": "The attempt is right, as 42 is."},
          thought=T, flags={"explanation_column": "deepseek_thinking_trajectory"},
          note="without the flag, no trace, and a warning"),
    Shape("GAIR/LIMO", {"question": Q, "solution": S, "answer": "42"}, answer="42"),
    Shape("GAIR/LIMR", {"id": 1, "prompt": Q, "answer": "42"}, "42", "42"),
    Shape("agentica-org/DeepScaleR-Preview-Dataset", {"problem": Q, "answer": "42", "solution": S}, answer="42",
          note="rows with an empty solution are bad rows"),
    Shape("AI-MO/NuminaMath-CoT", {"source": "x", "problem": Q, "solution": S, "messages": chat()}),
    Shape("AI-MO/NuminaMath-1.5",
          {"problem": Q, "solution": S, "answer": "42", "problem_type": "Algebra", "question_type": "x", "source": "x",
           "problem_is_valid": "Yes", "solution_is_valid": "Yes", "synthetic": False}, answer="42"),
    Shape("BytedTsinghua-SIA/DAPO-Math-17k",
          {"data_source": "x", "prompt": [{"content": Q, "role": "user"}], "ability": "MATH",
           "reward_model": {"ground_truth": "42", "style": "rule"}, "extra_info": {"index": "u"}}, "42", "42"),
    Shape("open-r1/DAPO-Math-17k-Processed",
          {"prompt": Q, "solution": "42", "data_source": "x", "source_prompt": [{"content": Q, "role": "user"}],
           "ability": "MATH", "reward_model": {"ground_truth": "42", "style": "rule"}, "extra_info": {"index": "u"}},
          "42", "42"),
    Shape("SynthLabsAI/Big-Math-RL-Verified",
          {"problem": Q, "answer": "42", "source": "x", "domain": ["Math"], "llama8b_solve_rate": 0.5}, "42", "42"),
    Shape("nvidia/AceReason-Math", {"problem": Q, "answer": "42"}, "42", "42"),
    Shape("nvidia/AceReason-1.1-SFT", {"category": "math", "source": "x", "input": Q, "output": THINK}, thought=T),
    Shape("nvidia/OpenMathReasoning",
          {"expected_answer": "42", "problem_type": "x", "problem_source": "x", "generation_model": "DeepSeek-R1",
           "pass_rate_72b_tir": "1", "problem": Q, "generated_solution": THINK, "inference_mode": "cot",
           "used_in_kaggle": True}, answer="42", thought=T),
    Shape("nvidia/OpenMathInstruct-2",
          {"problem": Q, "generated_solution": S, "expected_answer": "42", "problem_source": "x"}, answer="42"),
    Shape("meta-math/MetaMathQA", {"type": "x", "query": Q, "original_question": "6 * 7?", "response": S}),
    Shape("microsoft/orca-math-word-problems-200k", {"question": Q, "answer": S}, answer=S),
    Shape("tatsu-lab/alpaca", {"instruction": "Multiply.", "input": "6 and 7", "output": S, "text": f"Multiply. {S}"},
          question="Multiply.\n\n6 and 7"),
    Shape("databricks/databricks-dolly-15k",
          {"instruction": Q, "context": "Seven days are a week.", "response": S, "category": "closed_qa"},
          question=f"{Q}\n\nSeven days are a week."),
    Shape("sahil2801/CodeAlpaca-20k", {"output": S, "instruction": Q, "input": ""}),
    Shape("HuggingFaceH4/CodeAlpaca_20K", {"prompt": Q, "completion": S}),
    Shape("Open-Orca/SlimOrca",
          {"conversations": [{"from": "system", "value": SYSTEM, "weight": None},
                             {"from": "human", "value": Q, "weight": 0.0}, {"from": "gpt", "value": S, "weight": 1.0}]},
          system=SYSTEM),
    Shape("Open-Orca/OpenOrca", {"id": "flan.1", "system_prompt": SYSTEM, "question": Q, "response": S}, system=SYSTEM),
    Shape("teknium/OpenHermes-2.5",
          {"custom_instruction": None, "topic": None, "model_name": None, "model": None, "category": "x",
           "skip_prompt_formatting": False, "conversations": chat(names=SHAREGPT), "views": None,
           "language": None, "id": None, "title": None, "idx": None, "hash": None, "avatarUrl": None,
           "system_prompt": None, "source": "x"}),
    Shape("HuggingFaceH4/ultrachat_200k", {"prompt": Q, "prompt_id": "u", "messages": [*chat(), *chat()]}, None,
          refused="messages: expected one question and one answer, got 2 and 2",
          note="chats of several questions are bad rows"),
    Shape("anon8231489123/ShareGPT_Vicuna_unfiltered",
          {"id": "a_0", "conversations": [*chat(names=SHAREGPT), *chat(names=SHAREGPT)]}, None,
          refused="conversations: expected one question and one answer, got 2 and 2",
          note="chats of several questions are bad rows"),
    Shape("allenai/tulu-3-sft-mixture", {"id": "x_1", "messages": chat(), "source": "x"}),
    Shape("nvidia/Llama-Nemotron-Post-Training-Dataset",
          {"input": [{"role": "user", "content": Q}], "output": THINK, "category": "math", "license": "cc-by-4.0",
           "reasoning": "on", "generator": "DeepSeek-R1", "used_in_training": "Ultra", "version": "v1",
           "system_prompt": "detailed thinking on"}, thought=T, system="detailed thinking on"),
    Shape("nvidia/Nemotron-Post-Training-Dataset-v2",
          {"uuid": "u", "license": "cc-by-4.0", "generator": "DeepSeek-R1", "version": "v2", "category": "math",
           "reasoning": "on", "messages": [{**turn, "tool_calls": []} for turn in chat(THINK, system="")],
           "metadata": "{}"}, thought=T),
    Shape("FreedomIntelligence/medical-o1-reasoning-SFT", {"Question": Q, "Complex_CoT": T, "Response": S}, thought=T),
    Shape("TIGER-Lab/MMLU-Pro",
          {"question_id": 70, "question": Q, "options": ["40", "42"], "answer": "B", "answer_index": 1,
           "cot_content": "", "category": "math", "src": "x"}, "B", "B", question=LISTED),
    Shape("cais/mmlu", {"question": Q, "subject": "math", "choices": ["40", "42"], "answer": 1}, "1", "1",
          question=f"{Q}\n\n0. 40\n1. 42"),
    Shape("Idavidrein/gpqa",
          {"Question": Q, "Correct Answer": "42", "Incorrect Answer 1": "40", "Incorrect Answer 2": "36",
           "Incorrect Answer 3": "49", "Explanation": S, "Subdomain": "x", "Record ID": "r"},
          answer="42", flags={"solution_column": "Explanation", "answer_column": "Correct Answer"},
          refused="name them with --solution-column", note="`evaluate --benchmark gpqa-diamond` reads the choices"),
    Shape("derek-thomas/ScienceQA",
          {"image": None, "question": Q, "choices": ["40", "42"], "answer": 1, "hint": "", "task": "closed choice",
           "grade": "grade3", "subject": "math", "topic": "x", "category": "x", "skill": "x", "lecture": "",
           "solution": S}, answer="1", question=f"{Q}\n\n0. 40\n1. 42"),
    Shape("ChilleD/StrategyQA",
          {"qid": "q1", "term": "Six", "description": "number", "question": Q, "answer": True, "facts": "6 * 7 = 42."},
          "True", "True"),
    Shape("mandarjoshi/trivia_qa",
          {"question": Q, "question_id": "tc_1", "question_source": "x", "entity_pages": {}, "search_results": {},
           "answer": {"aliases": ["42"], "value": "42", "type": "Numerical"}}, "42", "42",
          flags={"solution_column": "answer.value", "answer_column": "answer.value"},
          refused="such as --solution-column answer.value"),
    Shape("Hothan/OlympiadBench",
          {"id": 1606, "question": Q, "solution": [S], "final_answer": ["42"], "context": None, "image_1": None,
           "modality": "Text-only", "difficulty": "x", "is_multiple_answer": False, "unit": None,
           "answer_type": "Numerical", "error": None, "question_type": "Open-ended", "subfield": "x", "subject": "Math",
           "language": "English"}, answer="42", note="rows with several solutions are bad rows"),
    Shape("codeparrot/apps",
          {"problem_id": 1, "question": Q, "solutions": '["print(42)", "print(6 * 7)"]', "input_output": "{}",
           "difficulty": "interview", "url": "x", "starter_code": ""}, None,
          refused="name them with --solution-column",
          note="`solutions` is a JSON list of programs; needs [a preset](../extending.md#input-presets)"),
    Shape("BAAI/TACO",
          {"question": Q, "solutions": '["print(42)", "print(6 * 7)"]', "starter_code": "", "input_output": "{}",
           "difficulty": "EASY", "raw_tags": "[]", "name": None, "source": "x", "tags": "[]", "skill_types": "[]",
           "url": None, "Expected Auxiliary Space": None, "time_limit": None, "date": None, "picture_num": "0",
           "memory_limit": None, "Expected Time Complexity": None}, None, refused="name them with --solution-column",
          note="as `codeparrot/apps`"),
    Shape("Skywork/Skywork-OR1-RL-Data",
          {"data_source": "x", "prompt": [{"content": Q, "role": "user"}], "ability": "math",
           "reward_model": {"ground_truth": '["42"]', "style": "rule"}, "extra_info": {"index": 1}}, "42", "42"),
    Shape("zwhe99/DeepMath-103K",
          {"question": Q, "final_answer": "42", "difficulty": 4.5, "topic": "x", "r1_solution_1": f"{T}\n</think>\n{S}",
           "r1_solution_2": f"{T}\n</think>\n{S}", "r1_solution_3": f"{T}\n</think>\n{S}"}, "42", "42", thought=T,
          flags={"explanation_column": "r1_solution_1"}, note="without the flag, no trace, and a warning"),
    Shape("facebook/natural_reasoning",
          {"question": Q, "reference_answer": S, "responses": [{"response_model": "x", "response": S}]}, answer=S),
    Shape("KodCode/KodCode-V1",
          {"question_id": "x_1", "question": Q, "solution": S, "test": "assert f() == 42", "gpt_pass_sequence": [1],
           "gpt_difficulty": "easy"}),
    Shape("nvidia/OpenCodeReasoning",
          {"id": "x", "input": Q, "output": THINK, "source": "x", "license": "x", "dataset": "x", "split": "train",
           "difficulty": "x", "solution": S}, thought=T, flags={"solution_column": "output"},
          refused="'solution' or 'output' may be the solution"),
    Shape("deepmind/aqua_rat", {"question": Q, "options": ["A)40", "B)42"], "rationale": S, "correct": "B"}, answer="B",
          question=f"{Q}\n\nA)40\nB)42", flags={"solution_column": "rationale", "answer_column": "correct"},
          refused="name them with --solution-column"),
    Shape("allenai/ai2_arc",
          {"id": "x_1", "question": Q, "choices": {"text": ["40", "42"], "label": ["A", "B"]}, "answerKey": "B"}, "B",
          "B", question=LISTED),
    Shape("cognitivecomputations/dolphin-r1",
          {"messages": [{"role": "user", "content": Q}], "reasoning": T, "answer": S, "model": "x"},
          thought=T, answer=S,
          flags={"question_column": "messages", "solution_column": "answer", "answer_column": "answer",
                 "explanation_column": "reasoning"},
          refused="messages: expected one question and one answer, got 1 and 0"),
    Shape("glaiveai/reasoning-v1-20m", {"prompt": Q, "response": THINK}, thought=T),
]  # fmt: skip
