"""What other tools call a setting (Lightning, timm, fastai, torchvision, Keras, Ultralytics) -> its key here."""

from __future__ import annotations

# a key here: the words for it elsewhere; a word can mean several keys, the nearest to where it stands is named
_WORDS = {
    "name": "output output_dir out_dir save_dir run_name exp_name experiment experiment_name project",
    "data.source": "path root dir folder data_dir data_path dataset dataset_dir train_dir image_dir images_dir img_dir",
    "data.images": "glob pattern image_pattern file_pattern filename filenames",
    "data.labels": "annotations annotation annots targets",
    "data.labels.file": "csv csv_file label_file labels_file labels_csv label_csv annotation_file ann_file",
    "data.size_px": "size resolution img_size image_size",
    "data.split.validation": "val valid val_split valid_split val_size val_fraction val_ratio val_pct valid_pct "
    "validation_split validation_size validation_fraction eval_split",
    "data.split.test": "test_split test_size test_fraction test_ratio test_pct",
    "data.split.seed": "split_seed random_state",
    "data.test.source": "test_dir test_path test_source test_folder",
    "train.image_px": "size resolution img_size image_size imgsz input_size crop_size",
    "train.epochs": "epoch max_epochs n_epochs num_epochs num_train_epochs total_epochs nb_epochs n_epoch",
    "train.batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size accumulate "
    "accumulate_grad_batches gradient_accumulation_steps",
    "train.seed": "random_seed manual_seed random_state rng",
    "train.precision": "amp fp16 bf16 half use_amp mixed_precision dtype",
    "train.monitor": "metric metrics best_metric eval_metric metric_for_best_model",
    "train.patience_epochs": "patience early_stop early_stopping es_patience early_stopping_patience",
    "train.clip_grad_norm": "clip_grad grad_clip max_grad_norm gradient_clip gradient_clip_val",
    "train.ema_epochs": "ema use_ema model_ema ema_decay model_ema_decay swa",
    "train.tta_hflip": "tta test_time_augmentation",
    "train.freeze_backbone_epochs": "freeze_epochs unfreeze_epoch frozen_epochs",
    "train.sampling": "sampler oversample oversampling weighted_sampler balanced_sampler",
    "train.model.name": "backbone arch architecture model_name network net encoder timm_model",
    "train.model.weights": "pretrained checkpoint ckpt ckpt_path init_from initial_checkpoint load_weights",
    "train.model.trainable": "freeze frozen freeze_backbone freeze_encoder unfreeze freeze_at",
    "train.model.head": "classifier cls_head classifier_head head_name",
    "train.model.head_dropout": "dropout drop drop_rate dropout_rate ps",
    "train.optimizer": "opt optim optimiser",
    "train.optimizer.lr": "learning_rate learningrate base_lr lr0 init_lr initial_lr max_lr eta",
    "train.optimizer.weight_decay": "wd l2 weightdecay",
    "train.optimizer.betas": "beta1 beta2 adam_beta1 adam_beta2",
    "train.optimizer.backbone_lr_factor": "lr_mult backbone_lr encoder_lr discriminative_lr",
    "train.optimizer.layer_decay": "layer_lr_decay layerwise_lr_decay layer_wise_lr_decay llrd lr_layer_decay",
    "train.optimizer.groups": "param_groups parameter_groups paramwise_cfg",
    "train.loss": "criterion loss_fn loss_func loss_function objective",
    "train.loss.label_smoothing": "smoothing smooth",
    "train.loss.label_weight": "class_weight class_weights label_weights",
    "train.schedule": "sched scheduler lr_scheduler lr_schedule lr_policy",
    "train.schedule.warmup_epochs": "warmup warm_up warmup_steps warmup_ratio num_warmup_steps",
    "train.augment": "aug augmentation augmentations transforms transform tfms batch_tfms",
    "train.augment.hflip": "flip fliplr flip_lr horizontal_flip random_horizontal_flip do_flip mirror",
    "train.augment.vflip": "flipud flip_ud flip_vert vertical_flip random_vertical_flip",
    "train.augment.rotate_deg": "rotation rotate rotations degrees angle max_rotate random_rotation rotation_range",
    "train.augment.crop": "scale min_scale rrc random_crop random_resized_crop zoom max_zoom",
    "train.augment.crop_ratio": "ratio aspect_ratio",
    "train.augment.brightness": "color_jitter colour_jitter colorjitter jitter max_lighting lighting",
    "train.augment.trivial_augment": "aa auto_augment autoaugment randaugment rand_augment trivialaugment",
    "train.augment.random_erasing": "reprob re_prob erasing random_erase cutout",
    "train.augment.mixup": "mixup_alpha mix_up",
    "train.augment.cutmix": "cutmix_alpha cut_mix",
    "evaluate.threshold": "thresh thresholds thr cutoff",
    "evaluate.calibrate": "calibration temperature_scaling",
    "run.device": "gpu gpus devices num_gpus n_gpus ngpu accelerator cuda use_cuda",
    "run.threads": "workers num_workers n_workers nworkers n_jobs jobs num_threads",
    "run.compile": "torch_compile torchcompile",
    "run.deterministic": "cudnn_deterministic",
    "run.resources[].time_min": "time time_limit walltime",
    "run.resources[].mem_gb": "mem memory ram",
    "run.resources[].partition": "queue",
    "grid.axes": "sweep search params param_grid hyperparameters hparams search_space",
}


def keys_for(word: str) -> list[str]:
    """The dotted keys that `word` means here, in the order of a spec; [] for a word of no known tool."""
    plain = word.lower().replace("-", "_").replace(" ", "_")
    return [key for key, words in _WORDS.items() if plain in words.split()]
