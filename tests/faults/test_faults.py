"""Seeded faults: each must turn a named test red, or that test guards nothing.

A copy of the project gets one wrong line, and pytest runs there the tests that are to notice. A
fault whose old text is no longer in its file fails here too: follow the code with it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("runtime", "train", "export", "tests", "configs", "pyproject.toml")
SECONDS = 300


@dataclass(frozen=True)
class Fault:
    """One mistake: ``old``, which stands once in ``file``, becomes ``new``."""

    name: str
    file: str
    old: str
    new: str
    noticed_by: str


FAULTS = (
    Fault(
        "a-changed-manifest-is-parsed",
        "runtime/manifest.py",
        "if seal is None or hashlib.sha256(body).hexdigest().encode() != seal[1]:",
        "if seal is None:",
        "tests/soak/test_models.py::test_no_changed_byte_reaches_a_parser[3]",
    ),
    Fault(
        "weights-in-another-file",
        "runtime/onnx_bytes.py",
        "if wire != _VARINT or self._varint(first, last)[0]:",
        "if wire != _VARINT:",
        "tests/test_onnx_bytes.py::test_external_data_is_found_wherever_it_is_named"
        "[by_location-in_subgraph]",
    ),
    Fault(
        "a-model-through-a-link",
        "runtime/manifest.py",
        "if not Path(os.path.realpath(file)).is_relative_to(os.path.realpath(directory)):",
        "if False:",
        "tests/test_manifest.py::test_a_link_may_stay_inside_but_not_leave",
    ),
    Fault(
        "exchanged-images-go-unnoticed",
        "runtime/doctor/swaps.py",
        "return tails < _TAILS and _skewness(values) < _SKEWNESS",
        "return False",
        "tests/test_check.py::test_exchanged_images_are_noticed[t1-t1ce-False]",
    ),
    Fault(
        "strangers-become-one-case",
        "runtime/strangers.py",
        "return [case for case in cases if id(case) not in taken], found",
        "return [strangers.as_one() for strangers in found] or list(cases), []",
        "tests/test_strangers.py::test_one_error_for_the_folder[False]",
    ),
    Fault(
        "a-mask-taken-for-a-modality",
        "runtime/naming.py",
        "alike = len({(file.separator, file.prefix) for file in found}) == 1",
        "alike = bool(found)",
        "tests/test_case.py::test_other_names_that_begin_so_are_not[names0]",
    ),
    Fault(
        "another-patients-result-stays",
        "runtime/app/results.py",
        'st.session_state["newest"] = st.session_state["result"] = newest',
        'st.session_state["newest"] = newest',
        "tests/test_app_view.py::test_a_new_result_is_shown_whatever_was_looked_at_before",
    ),
    Fault(
        "held-out-images-known-by-their-files-only",
        "train/session.py",
        "check_held_out_images(cases, entries, excluded, card, cache)",
        "pass",
        "tests/test_train_resume.py"
        "::test_a_held_out_case_that_is_stored_in_another_way_is_not_trained_on",
    ),
    Fault(
        "channels-by-position",
        "runtime/preprocess.py",
        "for channel, name in enumerate(card.modalities):",
        "for channel, name in enumerate(volume.images):",
        "tests/test_preprocess.py::test_channels_follow_the_card_and_not_the_case",
    ),
    Fault(
        "modalities-swapped",
        "runtime/labels.py",
        '("flair", "t1", "t1ce", "t2")',
        '("flair", "t1ce", "t1", "t2")',
        "tests/test_phantom.py::test_contrasts_follow_radiology",
    ),
    Fault(
        "no-last-window-flush-with-the-end",
        "runtime/windows.py",
        "[min(i * step, room) for i in range(count)]",
        "[i * step for i in range(room // step + 1)]",
        "tests/test_windows.py::test_a_brats_box_is_covered_as_worked_out_by_hand",
    ),
    Fault(
        "double-softmax-in-the-graph",
        "export/trace.py",
        "return torch.softmax(self.network(image), dim=1)",
        "return torch.softmax(torch.softmax(self.network(image), dim=1), dim=1)",
        "tests/test_trace.py::"
        "test_any_batch_and_any_shape_of_the_divisor_give_the_softmax_of_the_logits"
        "[plain-2-levels]",
    ),
    Fault(
        "double-softmax-in-validation",
        "train/backend.py",
        "torch.softmax(logits.float(), dim=1)",
        "torch.softmax(torch.softmax(logits.float(), dim=1), dim=1)",
        "tests/test_train_network.py::test_backend_applies_softmax_once_and_keeps_the_mode[False]",
    ),
    Fault(
        "identity-affine",
        "runtime/nifti_writer.py",
        "header.set_sform(grid.sform if grid.sform is not None else grid.affine,",
        "header.set_sform(np.eye(4),",
        "tests/test_nifti.py::test_label_maps_lie_where_the_input_lies[both-Y_seg.nii]",
    ),
    Fault(
        "affine-without-its-form",
        "runtime/nifti_writer.py",
        "header.set_qform(grid.qform if grid.qform is not None else grid.affine, grid.qform_code)",
        "header.set_qform(grid.affine, grid.qform_code)",
        "tests/test_nifti.py::test_label_maps_lie_where_the_input_lies[they differ-Y_seg.nii]",
    ),
    Fault(
        "three-for-four",
        "runtime/labels.py",
        "Convention.BRATS2020: {Label.NCR: 1, Label.ED: 2, Label.ET: 4},",
        "Convention.BRATS2020: {Label.NCR: 1, Label.ED: 2, Label.ET: 3},",
        "tests/test_prediction.py::test_labels_are_written_as_the_input_names_them_or_as_asked"
        "[brats2020-None]",
    ),
    Fault(
        "sample-deviation",
        "runtime/ops/moments.py",
        "/ (count * count)",
        "/ (count * (count - 1))",
        "tests/test_preprocess.py::test_voxels_are_those_of_the_formula",
    ),
    Fault(
        "statistics-over-the-background-too",
        "runtime/preprocess.py",
        "read = views if brain_only else {name: whole.oriented(raw[name]) for name in raw}",
        "read = {name: whole.oriented(raw[name]) for name in raw}; brain_only = False",
        "tests/test_preprocess.py::test_voxels_are_those_of_the_formula",
    ),
    Fault(
        "box-one-voxel-off",
        "runtime/segmenter.py",
        "ran.result.labels(ran.placement.boxed(full))",
        "ran.result.labels(ran.placement.boxed(full)[1:])",
        "tests/test_segmenter.py::test_labels_and_probabilities_are_in_file_order[LPS]",
    ),
    Fault(
        "a-box-is-seen-before-it-is-timed",
        "runtime/budget.py",
        'if segmenter.patch != "box":',
        "if True:",
        "tests/test_modes.py::test_what_a_shape_costs_when_it_is_first_seen_is_forecast[box0]",
    ),
    Fault(
        "a-box-by-hand-needs-no-certificate",
        "runtime/cli/infer_mode.py",
        '(_over_the_box(work, model, view) if options.patch == "box" else work)',
        "work",
        "tests/test_export_modes.py::"
        "test_what_a_certificate_refuses_is_refused_by_any_other_spelling[int8]",
    ),
    Fault(
        "a-devices-case-is-prepared-by-a-reader",
        "runtime/segmenter.py",
        "if not self.backend.ops.on_host:",
        "if not self.backend.ops:",
        "tests/test_cohort_stages.py::"
        "test_a_devices_arrays_are_touched_by_the_callers_thread_alone",
    ),
    Fault(
        "what-a-host-holds-around-the-network-is-not-counted",
        "runtime/cohort.py",
        " + 4 * floats * voxels",
        "",
        "tests/test_cohort_stages.py::test_a_case_takes_no_more_memory_than_is_kept_free_for_it",
    ),
    Fault(
        "who-shares-waits-for-the-work-of-others",
        "runtime/threads.py",
        "            for task in tasks:\n                task.do()\n",
        "            tasks[0].do()\n            wait([task.future for task in tasks])\n",
        "tests/test_threads.py::test_who_shares_does_not_wait_for_the_work_of_others",
    ),
    Fault(
        "no-floor-under-the-importance",
        "runtime/windows.py",
        "np.maximum(product, IMPORTANCE_FLOOR)",
        "np.asarray(product)",
        "tests/test_windows.py::test_importance_is_the_gaussian_of_the_design",
    ),
    Fault(
        "ties-to-the-highest-label",
        "runtime/ops/numpy.py",
        "larger = inner[index][rows] > best",
        "larger = inner[index][rows] >= best",
        "tests/test_windows.py::test_a_tie_goes_to_the_lower_label",
    ),
    Fault(
        "truncated-gzip-accepted",
        "runtime/nifti_bytes.py",
        "            while count := stream.readinto(room[size : size + _PART]):\n"
        "                size += count\n",
        "            data = isal_zlib.decompressobj(wbits=31).decompress(stored, len(room))\n"
        "            size = len(data)\n"
        "            room[:size] = data\n",
        "tests/test_nifti.py::test_a_gzip_without_its_last_bytes_is_noticed[4]",
    ),
    Fault(
        "left-and-right-guessed",
        "runtime/nifti_affine.py",
        "if axes[0] != axes[1]:",
        'if axes[0] != axes[1] and "S" not in axes[0]:',
        "tests/test_nifti_header.py"
        "::test_forms_that_disagree_on_left_and_right_are_refused[change0-RPS]",
    ),
    Fault(
        "one-file-for-two-modalities",
        "runtime/nifti.py",
        "    _check_distinct(case, images)\n",
        "",
        "tests/test_catalogue.py::test_each_row[Cases: the same bytes under two modalities]",
    ),
    Fault(
        "one-image-for-two-modalities",
        "runtime/nifti.py",
        "        elif _same_voxels(images[one].voxels, images[other].voxels):\n",
        "        elif images[one].voxels is images[other].voxels:\n",
        "tests/test_nifti.py"
        "::test_one_image_under_two_modalities_is_refused_however_it_is_stored[packed anew]",
    ),
    Fault(
        "folders-left-out-without-a-word",
        "runtime/naming.py",
        "os.walk(folder, onerror=unlisted, followlinks=True)",
        "os.walk(folder, followlinks=True)",
        "tests/test_case.py::test_a_folder_that_cannot_be_listed_is_told[13]",
    ),
    Fault(
        "a-sweep-takes-from-the-living",
        "runtime/atomic.py",
        "if try_lock(descriptor):",
        "if descriptor:",
        "tests/test_lock.py::test_a_second_writer_is_refused_until_the_first_is_gone",
    ),
    Fault(
        "metres-taken-for-millimetres",
        "runtime/nifti_affine.py",
        "_TO_MM: Final = {_METRE: 1e3,",
        "_TO_MM: Final = {_METRE: 1.0,",
        "tests/test_catalogue.py::test_each_row[Headers: units of metres]",
    ),
    Fault(
        "sidecar-before-the-label-map",
        "runtime/prediction.py",
        "        files.place()\n        record.place()\n",
        "        record.place()\n        files.place()\n",
        "tests/test_prediction.py::"
        "test_a_crash_never_leaves_a_sidecar_that_vouches_for_another_label_map[1]",
    ),
    Fault(
        "old-sidecar-beside-a-new-label-map",
        "runtime/prediction.py",
        "for path in (plan.sidecar, *leftovers):",
        "for path in leftovers:",
        "tests/test_prediction.py::"
        "test_a_crash_never_leaves_a_sidecar_that_vouches_for_another_label_map[1]",
    ),
    Fault(
        "batch-norm-folded-with-the-wrong-sign",
        "export/fuse.py",
        "(graph.bias(conv, weight.shape[axis]) - mean) * factor + shift",
        "(graph.bias(conv, weight.shape[axis]) + mean) * factor + shift",
        "tests/test_fuse.py::test_a_batch_norm_folds_by_its_definition[1e-05-False]",
    ),
    Fault(
        "batch-norm-folded-along-the-wrong-axis",
        "export/fuse.py",
        "        return 1\n    return None",
        "        return 0\n    return None",
        "tests/test_fuse.py::"
        "test_a_batch_norm_folds_into_a_transposed_convolution_by_its_definition[False]",
    ),
    Fault(
        "residual-before-the-relu",
        "train/tutorial.py",
        "self.conv2(self.conv1(x)) + self.residual_upsampler(x)",
        "torch.relu(self.conv2[:2](self.conv1(x)) + self.residual_upsampler(x))",
        "tests/test_tutorial.py::test_the_network_is_the_one_described[False-False]",
    ),
    Fault(
        "skip-before-what-comes-up",
        "train/tutorial.py",
        "torch.cat((up, skips[level - 1]), dim=1)",
        "torch.cat((skips[level - 1], up), dim=1)",
        "tests/test_tutorial.py::test_the_network_is_the_one_described[False-False]",
    ),
    Fault(
        "tutorial-normalised-over-the-brain",
        "train/tutorial.py",
        'normalisation="zscore-volume"',
        'normalisation="zscore-brain"',
        "tests/test_tutorial.py::"
        "test_the_card_says_what_the_tutorial_does_and_what_the_checkpoint_claims",
    ),
    Fault(
        "any-global-of-a-pickle-allowed",
        "train/torch_file.py",
        "with numpy_numbers():",
        "with torch.serialization.safe_globals([Path(path).__class__]), numpy_numbers():",
        "tests/test_torch_file.py::test_nothing_but_numbers_of_numpy_is_read[PosixPath]",
    ),
    Fault(
        "skip-and-upsampled-swapped",
        "export/up_branch.py",
        "of_up, of_skip = parts if up_first else parts[::-1]",
        "of_up, of_skip = parts[::-1] if up_first else parts",
        "tests/test_up_branch.py::test_either_order_of_the_concatenation_composes[2-True-3-up-first]",
    ),
    Fault(
        "order-of-the-concatenation-ignored",
        "export/up_branch.py",
        "up_first = concat.input[0] == up.output[0]",
        "up_first = True",
        "tests/test_up_branch.py::test_either_order_of_the_concatenation_composes[2-True-3-skip-first]",
    ),
    Fault(
        "composed-kernel-mirrored",
        "export/up_branch.py",
        "ai - ti + size - 1",
        "1 - ai + ti",
        "tests/test_up_branch.py::test_composed_kernel_is_exact_in_integers",
    ),
    Fault(
        "bias-composed-away",
        "export/up_branch.py",
        "if np.any(graph.bias(up, 1)):",
        "if False:",
        "tests/test_up_branch.py::test_what_does_not_compose_exactly_is_left_alone_and_named[bias]",
    ),
    Fault(
        "int8-scales-along-the-wrong-axis",
        "export/int8.py",
        '_CHANNELS: Final = {"Conv": 0, "ConvTranspose": 1}',
        '_CHANNELS: Final = {"Conv": 0, "ConvTranspose": 0}',
        "tests/test_int8.py::test_what_the_graph_holds",
    ),
    Fault(
        "int8-judged-on-its-calibration-cases",
        "export/calibrate.py",
        "if {image.sha256 for image in case.volume.images.values()} not in known",
        "if True",
        "tests/test_int8.py::test_the_gate_judges_on_other_cases",
    ),
    Fault(
        "fp16-without-rounding",
        "export/emulate.py",
        "result = result.to(rounded).to(self._arithmetic)",
        "result = result.to(self._arithmetic)",
        "tests/test_precision.py::test_rounding_equals_numpys_float16_tensor_by_tensor",
    ),
    Fault(
        "undecided-passes-the-gate",
        "export/parity.py",
        '"pass" if enough else "inconclusive"',
        '"pass"',
        "tests/test_parity.py::test_a_reference_that_shows_too_little_decides_nothing[no ET]",
    ),
    Fault(
        "empty-against-empty-scores-nothing",
        "runtime/metrics.py",
        "dice_both_empty: float = 1.0",
        "dice_both_empty: float = 0.0",
        "tests/test_metrics.py::test_empty_against_empty_and_empty_against_full",
    ),
    Fault(
        "distances-not-pooled",
        "runtime/surface.py",
        "float(np.percentile(np.concatenate((self.forth, self.back)), percent))",
        "max(float(np.percentile(way, percent)) for way in (self.forth, self.back))",
        "tests/test_metrics.py::test_hd95_pools_both_directions",
    ),
    Fault(
        "surfaces-weigh-the-same-whatever-their-size",
        "runtime/surface.py",
        "return near / (self.forth.size + self.back.size)",
        "return near and sum(float(np.mean(w <= reach)) for w in (self.forth, self.back)) / 2",
        "tests/test_metrics.py::test_nsd_weighs_both_surfaces_by_their_voxels",
    ),
    Fault(
        "volume-difference-the-wrong-way-round",
        "runtime/metrics.py",
        "volume_difference_ml=(called - true) * voxel_ml",
        "volume_difference_ml=(true - called) * voxel_ml",
        "tests/test_metrics.py::test_too_much_and_too_little_have_their_signs",
    ),
    Fault(
        "lesions-dilated-across-faces-only",
        "runtime/lesions.py",
        "_EIGHTEEN = ndimage.generate_binary_structure(3, 2)",
        "_EIGHTEEN = ndimage.generate_binary_structure(3, 1)",
        "tests/test_lesions.py::test_what_three_dilations_reach[step2-True]",
    ),
    Fault(
        "lesions-dilated-twice",
        "runtime/lesions.py",
        "dilations: int = 3",
        "dilations: int = 2",
        "tests/test_lesions.py::test_lesions_whose_dilations_touch_are_one[6-1]",
    ),
    Fault(
        "lesions-of-the-threshold-counted",
        "runtime/lesions.py",
        "sizes[lesion] <= rule.dropped_mm3",
        "sizes[lesion] < rule.dropped_mm3",
        "tests/test_lesions.py::test_lesions_of_50_mm3_and_less_are_dropped[size0-spacing0-False]",
    ),
    Fault(
        "false-positives-forgotten",
        "runtime/lesions.py",
        "scored = len(dices) + false_positives",
        "scored = len(dices)",
        "tests/test_lesions.py::test_the_smallest_false_positive_counts",
    ),
    Fault(
        "only-the-largest-component-of-a-lesion",
        "runtime/lesions.py",
        "np.isin(components, own), lesion_voxels",
        "np.isin(components, own[:1]), lesion_voxels",
        "tests/test_lesions.py::test_all_components_that_touch_a_lesion_are_united_whole",
    ),
    Fault(
        "missing-predictions-left-out",
        "runtime/evaluate.py",
        "if profile.missing is Missing.LEAVE_OUT:",
        "if missing:",
        "tests/test_evaluate.py::test_a_missing_prediction_counts_as_empty_and_is_listed",
    ),
    Fault(
        "four-for-three-in-a-prediction-believed",
        "runtime/evaluate.py",
        'read_labels(path, of_truth, assumed="the truth", told=told)',
        "read_labels(path, of_truth, told=told)",
        "tests/test_evaluate.py::test_a_4_for_a_3_in_a_prediction_is_refused[brats2024-{}.nii.gz]",
    ),
    Fault(
        "four-for-three-in-truth-believed",
        "runtime/truth.py",
        "if not np.any(stored == doubt.other):",
        "if False:",
        "tests/test_truth.py::test_training_on_values_in_doubt_is_refused",
    ),
    Fault(
        "phases-of-the-interleaved-kernel-not-flipped",
        "export/up_branch.py",
        "split = split[:, :, ::-1, :, ::-1, :, ::-1, :]",
        "split = split[:, :, :, :, ::-1, :, ::-1, :]",
        "tests/test_up_branch.py::test_each_phase_has_the_two_taps_that_the_formula_says",
    ),
    Fault(
        "phases-interleaved-along-the-wrong-axis",
        "export/up_branch.py",
        "perm=[0, 1, 5, 2, 6, 3, 7, 4]",
        "perm=[0, 1, 5, 3, 6, 2, 7, 4]",
        "tests/test_up_branch.py::test_either_order_of_the_concatenation_composes"
        "[2-True-3-up-first]",
    ),
    Fault(
        "kept-layers-reduced-all-the-same",
        "export/precision.py",
        'exact = node.op_type == "Softmax" or node.name in keep',
        'exact = node.op_type == "Softmax"',
        "tests/test_precision.py::test_a_mixed_graph_rounds_what_is_reduced_and_nothing_else"
        "[kept1-fp16]",
    ),
    Fault(
        "strict-stops-at-the-first-failure",
        "export/mixed_precision.py",
        "stop_at_failure=not options.strict",
        "stop_at_failure=True",
        "tests/test_mixed_precision.py::test_strict_leaves_the_failure_as_it_is[overflow]",
    ),
    Fault(
        "infinity-blamed-on-what-follows",
        "export/mixed_precision.py",
        "            spoilt.add(name)\n            continue",
        "            continue",
        "tests/test_mixed_precision.py::test_what_is_computed_from_infinity_is_not_blamed",
    ),
    Fault(
        "needless-layers-kept",
        "export/bisect.py",
        "                    kept -= {name}\n                    shrunk = True",
        "                    kept -= {name}",
        "tests/test_bisect.py::test_what_becomes_needless_once_another_has_gone_is_dropped_too",
    ),
    Fault(
        "average-of-the-newest-alone",
        "train/average.py",
        "torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + n) / (10 + n)))",
        "torch._foreach_lerp_(averages, values, min(decay, (1 + n) / (10 + n)))",
        "tests/test_train_average.py::test_the_average_has_its_closed_form[0.9]",
    ),
    Fault(
        "average-forgotten-when-resuming",
        "train/step.py",
        '            self._average.load_state(state["average"])\n',
        "",
        "tests/test_train_run.py::test_a_resumed_run_ends_where_an_uninterrupted_one_does",
    ),
    Fault(
        "each-rank-its-own-dice",
        "train/step.py",
        "reduce=world.sum_with_gradient if world.size > 1 else None,",
        "reduce=None,",
        "tests/test_distributed.py::test_two_processes_step_as_one_with_the_same_batch",
    ),
    Fault(
        "each-rank-its-own-running-statistics",
        "train/step.py",
        "            self._world.average_buffers(self._model)\n",
        "            pass\n",
        "tests/test_distributed.py::test_with_live_statistics_the_ranks_agree_bit_for_bit",
    ),
    Fault(
        "ranks-train-on-the-same-patches",
        "train/sampler.py",
        "first = self._batch * self._world.rank",
        "first = 0",
        "tests/test_distributed.py::test_every_world_steps_on_the_same_patches[2-2-2]",
    ),
    Fault(
        "everybody-speaks",
        "train/distributed.py",
        "    if first != rank:\n",
        "    if False:\n",
        "tests/test_distributed.py::test_what_fails_in_all_is_said_once",
    ),
    Fault(
        "a-time-limit-forgotten-when-resuming",
        "train/pace.py",
        'return not state.get("ended")',
        "return True",
        "tests/test_train_limits.py::test_a_run_whose_time_is_up_is_done",
    ),
    Fault(
        "evaluation-cut-down-with-time-to-spare",
        "train/pace.py",
        "        if left >= needed:\n",
        "        if left >= 100 * needed:\n",
        "tests/test_train_limits.py::"
        "test_with_time_to_spare_a_limit_changes_nothing_in_the_evaluation",
    ),
    Fault(
        "labels-not-mirrored",
        "train/augment_torch.py",
        "        labels = labels.flip(axes)\n",
        "",
        "tests/test_train_augment.py::test_torchio_and_torch_agree[shape0-flip]",
    ),
    Fault(
        "scaled-the-wrong-way",
        "train/augment_torch.py",
        "inverse: Tensor = torch.linalg.inv(forward)",
        "inverse: Tensor = forward",
        "tests/test_train_augment.py::test_scales_make_things_larger[torch]",
    ),
    Fault(
        "core-without-enhancing-tumour",
        "runtime/labels.py",
        '"TC": (Label.NCR, Label.ET),',
        '"TC": (Label.NCR,),',
        "tests/test_train_loss.py::test_regions_are_unions_of_labels",
    ),
    Fault(
        "largest-threshold-of-equals",
        "train/thresholds.py",
        "for threshold in tried[1:]:",
        "for threshold in tried[:0:-1]:",
        "tests/test_train_thresholds.py::test_specks_are_removed_and_no_more_than_needed",
    ),
    Fault(
        "visits-split-apart",
        "runtime/naming.py",
        "            return match[1]\n",
        "            return case_id\n",
        "tests/test_train_data.py::test_folds_cover_the_patients_once",
    ),
    Fault(
        "one-case-twice",
        "train/data.py",
        "    _check_distinct(cases, ordered)\n",
        "",
        "tests/test_train_data.py::test_one_case_under_two_names_is_refused",
    ),
    Fault(
        "held-out-patient-in-training",
        "train/session.py",
        "        check_held_out(split, found.excluded)\n",
        "",
        "tests/test_train_cases.py::test_the_command_says_so_before_it_reads_a_volume"
        "[flags2-Brats18_S_2 of the same patient in-True]",
    ),
    Fault(
        "damaged-cache-is-believed",
        "train/data.py",
        "if verify and any(digest(",
        "if not verify and any(digest(",
        "tests/test_train_data.py::"
        "test_a_damaged_entry_is_prepared_anew_and_said[in the middle-labels.npy]",
    ),
    Fault(
        "left-on-the-left-of-the-screen",
        "runtime/planes.py",
        'orientations.axcodes2ornt(("L", "P", "S"))',
        'orientations.axcodes2ornt(("R", "P", "S"))',
        "tests/test_planes.py::test_sides_slices_and_sizes_are_those_of_the_patient[axial-RAS]",
    ),
    Fault(
        "upside-down",
        "runtime/planes.py",
        "stack[:, ::-1] if _ROWS_TURN[plane] else stack",
        "stack",
        "tests/test_planes.py::test_sides_slices_and_sizes_are_those_of_the_patient[coronal-LPS]",
    ),
    Fault(
        "diameter-that-ends-inside-the-voxels",
        "runtime/diameter.py",
        "for face in (2 * first - 1, 2 * last + 1):",
        "for face in (2 * first - 0.5, 2 * last + 0.5):",
        "tests/test_measure.py::test_diameters_in_closed_form",
    ),
    Fault(
        "text-that-is-not-escaped",
        "runtime/markup.py",
        "child if isinstance(child, Markup) else escape(printable(child), quote=False)",
        "child",
        "tests/test_report.py::test_nothing_of_a_hostile_name_is_markup",
    ),
    Fault(
        "report-of-an-earlier-label-map",
        "runtime/output_plan.py",
        "return (self.other_labels, self.probabilities, self.preview, self.report)",
        "return (self.other_labels, self.probabilities, self.preview)",
        "tests/test_prediction.py::test_a_report_goes_with_the_label_map_that_it_shows",
    ),
    Fault(
        "a-dead-process-is-blamed-on-whatever-it-had-in-hand",
        "runtime/processes.py",
        "if worker.careful and worker.ready and len(jobs) == 1:",
        "if jobs:",
        "tests/test_processes.py::test_a_case_that_kills_is_found_and_told[1]",
    ),
    Fault(
        "nobody-runs-the-cases-of-the-last-process-that-died",
        "runtime/processes.py",
        "if self.lost or self.waiting or not self.begun:",
        "if self.waiting or not self.begun:",
        "tests/test_processes.py::test_a_case_that_kills_is_found_and_told[9]",
    ),
    Fault(
        "a-case-that-kills-has-others-beside-it",
        "runtime/cluster_pool.py",
        "room = 1 if worker.careful else depth + 1",
        "room = depth + 1",
        "tests/test_cluster_pool.py::test_a_case_is_blamed_only_for_a_death_that_it_was_alone_at",
    ),
    Fault(
        "a-case-is-given-to-a-worker-that-may-never-open",
        "runtime/cluster_pool.py",
        "if worker.open and source and worker.in_hand < room:",
        "if source and worker.in_hand < room:",
        "tests/test_cluster_pool.py::test_no_case_is_given_to_a_worker_that_has_not_opened",
    ),
    Fault(
        "ray-starts-workers-again-by-itself",
        "runtime/cluster.py",
        "max_restarts=0",
        "max_restarts=-1",
        "tests/test_cluster_pool.py::test_a_worker_takes_a_gpu_or_its_cores[cpu-resources1-need1-4]",
    ),
    Fault(
        "a-gpu-of-the-cluster-for-who-asks-for-a-cpu",
        "runtime/cluster.py",
        "on_gpus = may_take_gpu(backend) and (gpus > 0 or named)",
        "on_gpus = gpus > 0 or named",
        "tests/test_cluster_pool.py::test_a_worker_takes_a_gpu_or_its_cores[cpu-resources1-need1-4]",
    ),
    Fault(
        "an-error-that-an-actor-raises",
        "runtime/cluster_actor.py",
        "        except BratsError as error:\n            return error\n",
        "        except MemoryError as error:\n            raise error\n",
        "tests/test_cluster_actor.py::test_an_actor_gives_errors_back",
    ),
    Fault(
        "an-actor-that-does-not-look-for-its-folder",
        "runtime/cluster_actor.py",
        "loaded - began, look, self._folder)",
        "loaded - began, look)",
        "tests/test_cluster_actor.py::test_a_folder_that_was_moved_is_not_written_into[False]",
    ),
    Fault(
        "an-unexpected-error-of-a-case-that-ends-the-cohort",
        "runtime/cluster_actor.py",
        "except Exception as error:  # that of a case must not end the others",
        "except RuntimeError as error:",
        "tests/test_cluster_actor.py::test_an_error_of_this_program_is_one_of_its_case[zero]",
    ),
    Fault(
        "a-gpu-of-the-cluster-for-who-asks-a-server",
        "runtime/cluster.py",
        'if backend.backend == "triton":',
        'if backend.device == "triton":',
        "tests/test_cluster_pool.py::test_a_worker_opens_what_one_machine_would"
        "[backend0-0-need0-gpu-server:8001/reference]",
    ),
    Fault(
        "parts-by-the-order-of-the-file-system",
        "runtime/parts.py",
        "sorted(cases, key=lambda case: case.case_id)[",
        "list(cases)[",
        "tests/test_parts.py::test_parts_are_disjoint_and_complete",
    ),
    Fault(
        "parts-that-overlap",
        "runtime/parts.py",
        "[self.index - 1 :: self.count]",
        "[self.index - 1 :: max(1, self.count - 1)]",
        "tests/test_parts.py::test_parts_are_disjoint_and_complete",
    ),
    Fault(
        "two-writers-of-one-folder",
        "runtime/lock.py",
        "kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX",
        "kind = fcntl.LOCK_SH",
        "tests/test_lock.py::test_a_folder_is_free_again_after_its_writer",
    ),
    Fault(
        "a-part-that-keeps-the-other-parts-out",
        "runtime/lock.py",
        "if not held(descriptor, shared=part is not None):",
        "if not held(descriptor):",
        "tests/test_lock.py::test_parts_of_one_division_are_written_beside_each_other",
    ),
    Fault(
        "parts-of-two-divisions-in-one-folder",
        "runtime/lock.py",
        "elif not beside:",
        "elif False:",
        "tests/test_lock.py::test_parts_of_one_division_are_written_beside_each_other",
    ),
    Fault(
        "parts-that-begin-together-take-each-others-looks-for-runs",
        "runtime/lock.py",
        "freed = _held_file(other) if beside else _soon_held_file(other)",
        "freed = _held_file(other)",
        "tests/test_lock.py::test_a_part_waits_for_those_who_look_at_what_another_division_left",
    ),
    Fault(
        "volumes-compared-without-their-logarithm",
        "runtime/cohort_record.py",
        "logs = [log(value) for value in values]",
        "logs = list(values)",
        "tests/test_cohort_record.py::test_modified_z_by_hand",
    ),
    Fault(
        "what-was-kept-counts-as-done",
        "runtime/cohort_record.py",
        '"kept" if outcome.kept else "done"',
        '"done"',
        "tests/test_cohort_record.py::test_outcomes_are_counted_by_what_became_of_them",
    ),
    Fault(
        "failures-of-an-earlier-run-stay",
        "runtime/cohort_files.py",
        "remove(names.failures)",
        "pass",
        "tests/test_cohort_files.py::test_where_nothing_failed_there_is_no_table_of_failures",
    ),
    Fault(
        "a-name-that-a-spreadsheet-runs",
        "runtime/cohort_files.py",
        "cell(entry.case_id),\n            entry.status,",
        "entry.case_id,\n            entry.status,",
        "tests/test_cohort_files.py::test_names_are_text_wherever_they_are_shown",
    ),
    Fault(
        "tables-of-another-cohort-are-replaced",
        "runtime/cohort_places.py",
        'gone = sorted(told - {*cases, ""})',
        "gone: list[str] = []",
        "tests/test_cohort_files.py::test_an_earlier_cohort_of_other_cases_is_not_replaced_by_the_way",
    ),
    Fault(
        "an-edited-table-goes-with-a-resumed-run",
        "runtime/cohort_places.py",
        "if not replacing.overwrite and digest_of(path)",
        "if not replacing.overwrite and not replacing.resume and digest_of(path)",
        "tests/test_cohort_files.py::test_an_edited_file_is_replaced_only_when_asked"
        "[within-cohort.csv]",
    ),
    Fault(
        "an-edited-record-is-believed",
        "runtime/cohort_places.py",
        "sealed is not None and sealed != seal_of(value)",
        "not sealed",
        "tests/test_cohort_files.py::test_an_edited_file_is_replaced_only_when_asked"
        "[within-cohort.json]",
    ),
    Fault(
        "a-link-to-a-name-with-a-blank",
        "runtime/cohort_page.py",
        "href=quote(os.fsencode(entry.shown))",
        "href=entry.shown",
        "tests/test_cohort_files.py::test_the_page_shows_what_there_is",
    ),
    Fault(
        "a-page-that-hides-what-failed",
        "runtime/cohort_page.py",
        '_failures(record.of("failed")),',
        '_failures(record.of("failed")[1:]),',
        "tests/test_cohort_files.py::test_the_page_shows_what_there_is",
    ),
    Fault(
        "the-largest-volume-in-no-interval",
        "runtime/histogram.py",
        "counts[min(int(value / width), len(counts) - 1)] += 1",
        "if value < top: counts[min(int(value / width), len(counts) - 1)] += 1",
        "tests/test_histogram.py::test_counts_are_numpys",
    ),
    Fault(
        "bars-that-are-not-as-high-as-their-counts",
        "runtime/histogram.py",
        "return _HEIGHT - _BOTTOM - count / highest *",
        "return _HEIGHT - _BOTTOM - (count / highest) ** 0.5 *",
        "tests/test_histogram.py::test_the_bars_are_as_high_as_their_counts",
    ),
    Fault(
        "memory-in-kilobytes",
        "runtime/memory.py",
        "return int(line.split()[1]) * 1024",
        "return int(line.split()[1])",
        "tests/test_memory.py::test_the_peak_is_in_bytes_and_keeps_what_was_given_back",
    ),
    Fault(
        "a-case-in-hand-counted-as-the-network",
        "runtime/memory.py",
        "self._fixed = max(0, peak - size)",
        "self._fixed = peak",
        "tests/test_memory.py::test_the_first_case_says_what_all_else_takes",
    ),
    Fault(
        "a-list-of-threads-that-says-nothing",
        "runtime/cores.py",
        '.split(",")[0].strip()',
        ".strip()",
        "tests/test_cores.py::test_the_least_of_what_is_said_counts[environ3-4]",
    ),
    Fault(
        "a-quota-without-its-last-core",
        "runtime/cores.py",
        "max(1, ceil(quota / period)) if",
        "max(1, quota // period) if",
        "tests/test_cores.py::test_the_first_version_of_control_groups",
    ),
    Fault(
        "a-server-with-another-card",
        "runtime/backends/triton.py",
        "check_card(card, told.get(CARD_KEY), address)",
        "check_card(card, card.to_json(), address)",
        "tests/test_triton.py::test_a_model_of_another_card_is_refused",
    ),
    Fault(
        "requests-above-what-the-server-takes",
        "runtime/backends/triton.py",
        "shape = (min(batch, self._most, fit),",
        "shape = (min(batch, fit),",
        "tests/test_triton.py::test_a_case_through_a_server_is_the_case_here",
    ),
    Fault(
        "answers-in-the-order-in-which-they-come",
        "runtime/backends/triton.py",
        "begin, end, buffer, answer = sent.popleft()",
        "begin, end, buffer, answer = sent.pop()",
        "tests/test_backends.py::test_every_window_is_filled_and_taken_once_in_order"
        "[triton-cpu-fp32-5-2]",
    ),
    Fault(
        "what-failed-on-a-gpu-is-served",
        "export/triton.py",
        'model.verdict(file) == "fail" or model.refused(file, "ort")',
        'model.verdict(file) == "fail"',
        "tests/test_triton.py::test_what_failed_on_a_gpu_is_not_served",
    ),
    Fault(
        "an-engine-without-its-window",
        "export/triton.py",
        "sizes = served.window or (-1, -1, -1)",
        "sizes = (-1, -1, -1)",
        "tests/test_triton.py::test_an_engine_is_for_one_window_and_one_kind_of_gpu",
    ),
    Fault(
        "kept-cases-in-the-pace",
        "runtime/cli/infer_pace.py",
        "return 60 * self.done / seconds if",
        "return 60 * (self.done + self.kept) / seconds if",
        "tests/test_infer_pace.py::test_the_pace_counts_only_what_was_segmented",
    ),
    Fault(
        "more-than-all-of-the-time",
        "runtime/cli/infer_pace.py",
        "wall = self.clock.wall * self.processes",
        "wall = self.clock.wall",
        "tests/test_infer_pace.py::test_stages_are_busy_per_thread_and_process",
    ),
    Fault(
        "a-cohorts-processes-outlive-the-first",
        "runtime/process_worker.py",
        "                os._exit(1)  # nobody is left to tell\n",
        "                return\n",
        "tests/soak/test_cohort_kills.py::test_a_killed_cohort_resumed_is_one_that_was_left_alone",
    ),
    Fault(
        "a-slow-process-sits-on-what-others-could-do",
        "runtime/processes.py",
        "room = 1 if worker.careful else min(depth + 1, self._room())",
        "room = 1 if worker.careful else _AHEAD",
        "tests/test_processes.py::test_a_slow_process_does_not_sit_on_what_others_could_do",
    ),
    Fault(
        "one-device-that-is-lost-ends-the-work-of-all",
        "runtime/processes.py",
        "if not self.begun or not (self.workers or self.stopping):",
        "if not self.stopping:",
        "tests/test_processes.py::test_a_device_that_is_lost_leaves_its_cases_to_the_others[False]",
    ),
    Fault(
        "two-graphs-in-one-cohort",
        "runtime/processes.py",
        "if (info.sha256, info.name) != (first.sha256, first.name):",
        "if False:",
        "tests/test_processes.py::test_devices_that_open_something_else_are_refused[other0]",
    ),
    Fault(
        "a-process-writes-into-whatever-took-its-folders-place",
        "runtime/lock.py",
        "if held.identity == identity:",
        "if True:",
        "tests/test_processes.py::test_a_process_writes_into_no_other_folder[True]",
    ),
    Fault(
        "no-table-of-what-was-done-before-the-run-failed",
        "runtime/cli/infer_run.py",
        "if several and len(record.entries) > len(problems) and not interrupted(error):",
        "if False:",
        "tests/test_infer_cli.py::test_what_was_done_before_a_run_failed_is_in_its_tables[False]",
    ),
)

Run = Callable[[], subprocess.CompletedProcess[str]]


def copy_project(folder: Path) -> Path:
    # What is compiled stays valid, as times of change are copied; a faulty file has a new one.
    ignored = shutil.ignore_patterns(".hypothesis")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def run_pytest(folder: Path, *selection: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYTEST_ADDOPTS") and not name.startswith("PYTEST_")
    }
    # Two of them run side by side; installed plugins take a second to load and none is needed.
    environment |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *selection]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def with_fault(folder: Path, fault: Fault) -> subprocess.CompletedProcess[str]:
    copy_project(folder)
    file = folder / fault.file
    text = file.read_text()
    assert text.count(fault.old) == 1, (
        f"{fault.file} holds {text.count(fault.old)} times, not once:\n{fault.old}"
    )
    file.write_text(text.replace(fault.old, fault.new))
    return run_pytest(folder, fault.noticed_by)


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """Every run that a selected test of this file asks for, two at a time."""
    wanted = {item.name for item in request.session.items if item.path == request.path}
    with ThreadPoolExecutor(2) as pool:
        futures = {}
        if "test_without_a_fault_they_pass" in wanted:
            folder = copy_project(tmp_path_factory.mktemp("control"))
            selection = sorted({fault.noticed_by for fault in FAULTS})
            futures["control"] = pool.submit(run_pytest, folder, *selection)
        for fault in FAULTS:
            if f"test_a_fault_is_noticed[{fault.name}]" in wanted:
                folder = tmp_path_factory.mktemp(fault.name)
                futures[fault.name] = pool.submit(with_fault, folder, fault)
        yield futures
        for future in futures.values():
            future.cancel()


Runs = dict[str, "Future[subprocess.CompletedProcess[str]]"]


def summary(result: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """What pytest counted: {"passed": 3, "failed": 1}."""
    lines = result.stdout.strip().splitlines() or [""]
    return {kind: int(count) for count, kind in re.findall(r"(\d+) ([a-z]+)", lines[-1])}


def test_without_a_fault_they_pass(runs: Runs) -> None:
    result = runs["control"].result()
    assert result.returncode == 0, result.stdout + result.stderr
    counted = summary(result)
    # None is skipped, and no selection stands for more than one test.
    assert {kind: counted[kind] for kind in counted if kind != "in"} == {
        "passed": len({fault.noticed_by for fault in FAULTS})
    }


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_noticed(runs: Runs, fault: Fault) -> None:
    result = runs[fault.name].result()
    # 1 is "tests failed"; the others are collection, usage and internal errors.
    assert result.returncode == 1, f"exit {result.returncode}\n{result.stdout}{result.stderr}"
    counted = summary(result)
    assert counted.get("failed") == 1, result.stdout
    assert "error" not in counted, result.stdout


def test_names_are_unique() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.old != fault.new for fault in FAULTS)
