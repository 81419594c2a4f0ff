"""Rewards for run_reward.py: functions of `completions` and the columns of the task, a number for each completion."""


def mentions_every_value(completions: list[str], source: list[str], **columns) -> list[float]:
    """Share of a meaning representation's values (`name[Aromi], food[Italian]`) that a text mentions word for word."""
    rewards = []
    for text, meaning in zip(completions, source, strict=True):
        fields = [part.split("[") for part in meaning.split("], ")]
        values = [value.rstrip("]").lower() for _, value in fields]
        rewards.append(sum(value in text.lower() for value in values) / len(values))
    return rewards
