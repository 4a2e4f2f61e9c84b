"""IFEval: requests with instructions that a program can verify (Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models")."""

from __future__ import annotations

from pathlib import Path

from tacit.core.rollouts import Prompt
from tacit.tasks.data import DataError, text_field
from tacit.tasks.finite import Finite, Row, load, split


class IfEval(Finite):
    """Reads $TACIT_DATA/ifeval/input_data.jsonl.gz, or `path`. With heldout_share 1 all is held out: an evaluation on the whole set.

    The difficulty is the number of instructions; the reward (`reward`) is 1 when all are followed.
    """

    name = "ifeval"
    reward = "tacit.rewards.instructions:Instructions"

    def __init__(self, path: str | None = None, heldout_share: float = 0.5):
        def read(row: Row, source: Path, line: int) -> Prompt:
            names, arguments = row.get("instruction_id_list"), row.get("kwargs")
            if not (isinstance(names, list) and isinstance(arguments, list) and names and len(names) == len(arguments)):
                raise DataError(f"{source}, line {line}: expected 'instruction_id_list' and 'kwargs', two lists of one length")
            instructions = [
                {"id": name, "arguments": {k: v for k, v in given.items() if v is not None}} for name, given in zip(names, arguments, strict=True)
            ]
            info = {"instructions": instructions, "difficulty": f"{len(names)} instruction{'s' * (len(names) > 1)}"}
            return Prompt(f"ifeval/{row.get('key', line)}", text_field(row, "prompt", source, line), None, info)

        super().__init__(*split(load(path, "ifeval/input_data.jsonl.gz", read), heldout_share, key=lambda prompt: prompt.id))
