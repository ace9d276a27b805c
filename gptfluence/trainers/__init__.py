"""Trainings that are run by others, the Trainer of transformers and TRL's SFTTrainer, recorded by a callback."""
