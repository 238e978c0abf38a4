"""The main job from end to end on word problems, in a few minutes on a laptop."""
