"""Rewards for run_reward.py: functions of `completions` and the columns of the task, a number for each completion."""

import sacrebleu


def mentions_every_value(completions: list[str], source: list[str], **columns) -> list[float]:
    """Share of a meaning representation's values (`name[Aromi], food[Italian]`) that a text mentions word for word."""
    rewards = []
    for text, meaning in zip(completions, source, strict=True):
        fields = [part.split("[") for part in meaning.split("], ")]
        values = [value.rstrip("]").lower() for _, value in fields]
        rewards.append(sum(value in text.lower() for value in values) / len(values))
    return rewards


def sentence_bleu(completions: list[str], references: list[list[str]], **columns) -> list[float]:
    """
    BLEU-4 of each text against all right answers to its source, smoothed as sacrebleu does by default, from 0 to 1.
    """
    return [
        sacrebleu.sentence_bleu(text, right).score / 100 for text, right in zip(completions, references, strict=True)
    ]
