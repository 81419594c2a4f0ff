"""Compiled graphs: shared by near shapes, bounded in number, and never those of another model."""

import copy
import gc
import pickle
import threading
import weakref

import torch
from peft import LoraConfig, get_peft_model

from modeling_yan.compilation_yan import CompiledFunctions

from .helpers import randomize, source_batch
from .test_compilation import TRACED, assert_same, seeded, small_model, written


def test_near_shapes_share_a_graph_and_others_do_not():
    model = small_model()
    functions = CompiledFunctions.of(model)
    for length, rows, target in ((7, 3, 5), (5, 3, 9), (6, 4, 16), (8, 4, 2)):
        ids, mask = source_batch((length,) * rows)
        model.generate(ids, mask, target_lengths=target, compile_config=TRACED)
    assert len(functions) == 2  # one encoder, one writer
    ids, mask = source_batch((7, 3, 5))
    model.generate(ids, mask, target_lengths=17, compile_config=TRACED)
    assert len(functions) == 3
    model.generate(ids, mask, target_lengths=17, num_inference_steps=1, compile_config=TRACED)
    assert len(functions) == 4


def test_replaced_modules_are_never_answered_by_a_stale_graph():
    model = small_model()
    ids, mask = source_batch()
    before = written(model, ids, mask, compile_config=TRACED)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["up_proj"], r=4))
    randomize(adapted, 7)
    options = {"input_ids": ids, "attention_mask": mask, "target_lengths": 9}
    plain = adapted.generate(**options, generator=seeded())
    assert torch.equal(adapted.generate(**options, generator=seeded(), compile_config=TRACED), plain)
    merged = adapted.merge_and_unload()
    assert_same(written(merged, ids, mask, compile_config=TRACED), written(merged, ids, mask))
    assert not torch.equal(before.trajectory[-1], written(merged, ids, mask).trajectory[-1])
    merged.to(torch.float64)
    assert_same(written(merged, ids, mask, compile_config=TRACED), written(merged, ids, mask))


def test_copies_start_without_graphs_and_answer_for_themselves():
    model = small_model()
    ids, mask = source_batch()
    model.generate(ids, mask, compile_config=TRACED)
    for other in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
        assert len(CompiledFunctions.of(other)) == 0
    other = randomize(copy.deepcopy(model), 5)
    assert_same(written(other, ids, mask, compile_config=TRACED), written(other, ids, mask))


def test_the_number_of_graphs_is_bounded_and_the_oldest_goes():
    functions = CompiledFunctions(limit=2)
    for key in "abac":
        functions.get(key, lambda x: x + 1, {"backend": "eager"})(torch.zeros(1))
    assert len(functions) == 2
    assert list(functions._functions) == ["a", "c"]


def test_a_deleted_model_is_released():
    model = small_model()
    ids, mask = source_batch()
    model.generate(ids, mask, compile_config=TRACED)
    released = weakref.ref(model)
    del model
    gc.collect()
    assert released() is None


def test_threads_share_the_graphs():
    model = small_model()
    ids, mask = source_batch()
    plain = model.generate(ids, mask, generator=seeded(), target_lengths=6)
    answers, errors = [], []

    def work():
        try:
            answers.append(model.generate(ids, mask, generator=seeded(), target_lengths=6, compile_config=TRACED))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(torch.equal(answer, plain) for answer in answers)
    assert len(answers) == 4
    assert len(CompiledFunctions.of(model)) == 2
